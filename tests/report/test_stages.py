"""The table of stages: what is there, how far it is from the data, and what is missing."""

from pathlib import Path

from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.freshness import Freshness
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.report.stages import list_stages


def make(runs: Path, stage: str, *sources: Artifact, **flags) -> Artifact:
    inputs = {"data": "d", **{source.name: source.digest for source in sources}}
    request = Request(runs, "toy", stage, {"epochs": 3}, inputs, flags)
    with publish(request):
        pass
    artifact = find(request)
    assert artifact is not None
    return artifact


def test_each_artifact_stands_as_deep_as_its_longest_way_from_the_data(tmp_path):
    step1 = make(tmp_path, "step1")
    responses = make(tmp_path, "responses", step1, split="train")
    labels = make(tmp_path, "pseudolabels", responses, refine=True)
    make(tmp_path, "scores", step1, labels, scored="pseudo-refined", split="train")

    def configure(artifact: Artifact) -> dict[str, int]:
        return {"epochs": 4 if artifact.manifest["stage"] == "pseudolabels" else 3}

    freshness = Freshness(tmp_path, "toy", lambda name, manifest: "d", configure)
    rows = {row.name: row for row in list_stages(freshness, lambda command: f"{command} --dataset toy")}
    assert {name: (row.state, row.depth) for name, row in rows.items()} == {
        "step1": ("fresh", 0),
        "responses/train": ("fresh", 1),
        "pseudolabels/refine": ("stale", 2),
        "step2": ("missing", 0),
        "scores/pseudo-refined-train": ("stale", 3),
    }
    assert rows["step2"].why == "run: ris train-step2 --dataset toy"
    assert rows["pseudolabels/refine"].why == "configuration.epochs: 3 → 4"
    assert rows["scores/pseudo-refined-train"].reads == ("data", "step1", "pseudolabels/refine")
