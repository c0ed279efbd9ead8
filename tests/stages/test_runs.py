import dataclasses
import json
from pathlib import Path

import pytest

from calls import Options, call
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import OUTCOMES
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.errors import RisError
from ris_pipeline.scoring.metrics import Outcome
from ris_pipeline.scoring.outcomes import save_outcomes
from stages import runs


def run_runs(options: Options, which, metric, tensorboard) -> None:
    call(runs.run, options, which=which, metric=metric, tensorboard=tensorboard)


def make(options: Options, stage: str, *inputs: Artifact, flags=None, points=(), **configuration) -> Artifact:
    """An artifact; of scores, whose `points` say which refs were pointed at."""
    named = {artifact.name: artifact.digest for artifact in inputs}
    request = Request(options.runs, "tiny", stage, configuration, named, flags or {})
    with publish(request) as work:
        (work.path / "weights").write_bytes(b"12345")
        if points:
            outcomes = [Outcome(k, k, 1, bool(hit), None, None, None, None) for k, hit in enumerate(points)]
            save_outcomes(work.path / OUTCOMES, outcomes)
    artifact = find(request)
    assert artifact is not None
    return artifact


@pytest.fixture
def two(tiny: Options) -> tuple[Artifact, Artifact]:
    """Two variants of Step-1, and their scores on val: the first finds one of four refs, the second all of them."""
    made = []
    for epochs, points in ((1, (1, 0, 0, 0)), (2, (1, 1, 1, 1))):
        step1 = make(tiny, "step1", epochs=epochs)
        make(tiny, "scores", step1, flags={"scored": "step1", "split": "val"}, points=points)
        made.append(step1)
    return made[0], made[1]


def test_all_variants_are_listed(tiny, two, capsys):
    run_runs(tiny, [], "all", None)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    found = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert found[0] == ["run", "digest", "finished", "time", "size", "against the latest"]
    assert {(line[0], line[1], line[-1]) for line in found[1:3]} == {  # finished in the same second: in any order
        ("step1", two[0].digest, "epochs: 2 → 1"),
        ("step1", two[1].digest, "latest"),
    }
    assert found[3][0] == "scores/step1-val"
    run_runs(dataclasses.replace(tiny, json=True), [], "all", None)
    rows = json.loads(capsys.readouterr().out)
    differs = {row["run"]: row["differs"] for row in rows if not row["latest"]}
    assert len(rows) == 4
    assert differs == {"step1": ["epochs: 2 → 1"], "scores/step1-val": ["step1 epochs: 2 → 1"]}


def test_two_are_compared(tiny, two, capsys):
    run_runs(tiny, [two[0].digest[:10], "step1"], "all", None)
    out = capsys.readouterr().out
    assert "differs (a → b):\n  epochs: 1 → 2\n" in out
    assert out.splitlines()[-1].split() == [
        "step1",
        "val",
        "4",
        "pointit",
        "25.0",
        "100.0",
        "+75.0",
        "[25.0,",
        "100.0]",
    ]
    run_runs(dataclasses.replace(tiny, json=True), ["step1", two[0].digest], "pointit", None)
    found = json.loads(capsys.readouterr().out)
    assert found["differs"] == ["epochs: 2 → 1"]
    (row,) = found["scores"]
    assert (row["a"], row["b"], row["difference"], row["n_refs"]) == (100.0, 25.0, -75.0, 4)
    assert row["ci_low"] == -100.0  # a resample of refs that the first run all missed


def test_of_two_scores_the_kinds_may_differ(tiny, two, capsys):
    step2 = make(tiny, "step2", flags={"labels": "pseudo"})
    make(tiny, "scores", step2, flags={"scored": "step2", "split": "val"}, points=(1, 1, 0, 1))
    run_runs(tiny, ["scores/step1-val", "scores/step2-val"], "pointit", None)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("step1 → step2  val    4     pointit  100.0  75.0  -25.0 [")


def test_without_scores_the_settings_are_compared(tiny, capsys):
    old = make(tiny, "step1", epochs=1)
    make(tiny, "step1", epochs=2)
    run_runs(tiny, [old.digest, "step1"], "all", None)
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "  epochs: 1 → 2"
    assert "the two have no scores to compare" in output.err


def test_wrong_use(tiny, two):
    with pytest.raises(RisError, match="give two runs"):
        run_runs(tiny, ["step1"], "all", None)
    with pytest.raises(RisError, match="no run 'stpe1'"):
        run_runs(tiny, ["stpe1", "step1"], "all", None)
    mistyped = dataclasses.replace(tiny, runs=tiny.runs.with_name("rusn"))
    with pytest.raises(RisError, match=f"no finished runs yet; did you mean {tiny.runs}/tiny"):
        run_runs(mistyped, [], "all", None)


def test_curves_for_tensorboard(tiny, tmp_path: Path, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    step1 = make(tiny, "step1", epochs=1)
    (step1.path / "metrics.jsonl").write_text('{"step": 0, "loss": 4.0}\n{"step": 1, "loss": 2.5}\n')
    make(tiny, "step2", flags={"labels": "pseudo"})  # has no curves
    run_runs(tiny, [], "all", tmp_path / "curves")
    folder = tmp_path / "curves" / "step1" / step1.digest
    assert capsys.readouterr().out.splitlines() == [str(folder)]
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 4.0), (1, 2.5)]
