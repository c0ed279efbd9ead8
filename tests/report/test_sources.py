"""Which artifacts a report is made of."""

import pytest

from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import TRAINING_LOG
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.errors import RisError
from ris_pipeline.report.sources import find_sources

SPLITS = ["train", "val", "test"]


@pytest.fixture
def make(tmp_path):
    """A function (stage, log="", inputs=None, **flags) that publishes an artifact, with the log of a training."""

    def make(stage: str, log: str = "", inputs: dict[str, str] | None = None, **flags) -> Artifact:
        request = Request(tmp_path, "toy", stage, {"prms": False}, inputs or {}, flags)
        with publish(request) as work:
            if log:
                (work.path / TRAINING_LOG).write_text(log)
        artifact = find(request)
        assert artifact is not None
        return artifact

    return make


def typed(command: str) -> str:
    return f"{command} --dataset toy"


def test_what_is_there_is_found_by_row_and_split(make, tmp_path):
    step1, step2 = make("step1", '{"step": 0, "loss": 2}\n'), make("step2", labels="pseudo")
    ours, theirs = make("responses", split="val"), make("responses", method="amr", split="val")
    labels, scores = make("pseudolabels", refine=True), make("scores", scored="step1", split="test")
    sources = find_sources(tmp_path, "toy", SPLITS, typed)
    assert sources.splits == ("val", "test")  # train has labels only, which no map stands behind
    assert sources.splits_with_maps == ["val"]
    assert [row.name for row in sources.rows] == ["step1", "prms", "pseudo-refined", "step2", "amr"]
    assert {key: artifact.digest for key, artifact in sources.shown.items()} == {
        ("step1", "val"): ours.digest,  # and no PRMS, which these were dumped without
        ("pseudo-refined", "train"): labels.digest,
        **{("step2", split): step2.digest for split in SPLITS},
        ("amr", "val"): theirs.digest,
    }
    assert list(sources.scored) == [("step1", "test")]
    assert {artifact.digest for artifact in sources.artifacts} == {
        artifact.digest for artifact in (step1, step2, ours, theirs, labels, scores)
    }
    curves = sources.read_curves()
    assert list(curves) == ["Step-1"]  # the others have left no log
    assert curves["Step-1"]["loss"][1].tolist() == [2]


def test_other_splits_are_left_out(make, tmp_path):
    make("responses", split="val")
    make("scores", scored="step1", split="val")
    with pytest.raises(RisError, match="no scores of test yet; run: ris dump-responses --dataset toy"):
        find_sources(tmp_path, "toy", ["test"], typed)


def test_labels_stand_behind_the_round_before_with_their_own_scores(make, tmp_path):
    responses = make("responses", split="train")
    first = make("pseudolabels", inputs={responses.name: responses.digest}, refine=True)
    scores = make("scores", inputs={first.name: first.digest}, scored="pseudo-refined", split="train")
    network = make("step2", inputs={first.name: first.digest}, labels="pseudo")
    second = make("pseudolabels", inputs={network.name: network.digest}, refine=True)
    runs = find_sources(tmp_path, "toy", SPLITS, typed).labels
    assert [(run.labels.digest, run.scores and run.scores.digest) for run in runs] == [
        (first.digest, scores.digest),
        (second.digest, None),
    ]
    make("responses", split="val")
    assert not find_sources(tmp_path, "toy", ["val"], typed).labels
