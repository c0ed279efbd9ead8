import dataclasses
import json

from ris_pipeline.artifacts import publish
from ris_pipeline.config import PseudolabelConfig, ResponsesConfig, Step1Config
from stages import status
from stages.common import StageOptions, input_of, request_of, resolve_config


def make(options: StageOptions, stage: str, cls: type, *inputs, flags=None, **own):
    config = resolve_config(options, cls, stage, **own)
    artifacts = [input_of(options, name, **of) for name, of in inputs]
    with publish(request_of(options, stage, config, inputs=artifacts, flags=flags)) as work:
        (work.path / "result").write_bytes(b"12345")


def states(options: StageOptions, capsys, **settings) -> dict[str, tuple[str, list[str]]]:
    status.run(dataclasses.replace(options, json=True), **settings)
    return {row["artifact"]: (row["state"], row["why"]) for row in json.loads(capsys.readouterr().out)}


def test_each_state(tiny, capsys):
    assert states(tiny, capsys)["step1"] == ("missing", ["run: ris train-step1"])
    make(tiny, "step1", Step1Config)
    make(tiny, "responses", ResponsesConfig, ("step1", {}), flags={"split": "train"})
    from_train = ("responses", {"split": "train"})
    make(tiny, "pseudolabels", PseudolabelConfig, from_train, flags={"refine": False}, refine=False)
    found = states(tiny, capsys)
    fresh = ["step1", "responses/train", "pseudolabels/no-refine"]
    assert [found[name] for name in fresh] == [("fresh", [])] * 3
    assert found["step2"][0] == "missing"

    old = input_of(tiny, "step1").digest
    make(dataclasses.replace(tiny, set=["epochs=3"]), "step1", Step1Config)
    found = states(tiny, capsys)
    assert found["step1"] == ("stale", ["configuration.epochs: 3 → 2"])
    new = input_of(tiny, "step1").digest
    assert found["responses/train"] == ("stale", [f"inputs.step1: {old} → {new}"])


def test_damage_and_broken_runs(tiny, capsys):
    make(tiny, "step1", Step1Config)
    (input_of(tiny, "step1").path / "result").write_bytes(b"x")
    (tiny.runs / "tiny" / "step2" / "0123456789ab.partial").mkdir(parents=True)
    assert states(tiny, capsys)["step1"][0] == "fresh"
    found = states(tiny, capsys, verify=True)
    assert found["step1"] == ("damaged", ["result"])
    assert found["step2"][0] == "partial"


def test_the_table_has_a_line_per_artifact(tiny, capsys):
    make(tiny, "step1", Step1Config)
    status.run(tiny)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["artifact", "state", "finished", "seconds", "bytes", "path", "why"]
    assert [line.split()[0] for line in lines[1:]] == [
        "clip", "step1", "responses", "pseudolabels", "step2", "scores",
    ]  # fmt: skip
    assert "0.0 MB" in lines[2]
