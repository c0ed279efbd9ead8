import dataclasses
import json
import os
import socket
from pathlib import Path

import pytest

from calls import Options, call, context_of
from ris_pipeline.artifacts.layout import STAGES
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.config import PseudolabelConfig, ResponsesConfig, Step1Config, Step2Config
from ris_pipeline.errors import RisError
from stages import status


def make(options: Options, stage: str, cls: type, *inputs, flags=None, **own):
    config = context_of(options).resolve(cls, stage, **own)
    artifacts = [context_of(options).find_input(name, **of) for name, of in inputs]
    with publish(context_of(options).request(stage, config, inputs=artifacts, flags=flags)) as work:
        (work.path / "result").write_bytes(b"12345")


def states(options: Options, capsys, **settings) -> dict[str, tuple[str, list[str]]]:
    call(status.run, dataclasses.replace(options, json=True), **settings)
    return {row["artifact"]: (row["state"], row["why"]) for row in json.loads(capsys.readouterr().out)}


def test_each_state(tiny, capsys):
    typed = f"ris train-step1 --dataset {tiny.dataset} --data-root {tiny.data_root} --runs {tiny.runs}"
    assert states(tiny, capsys)["step1"] == ("missing", [f"run: {typed}"])
    make(tiny, "step1", Step1Config)
    make(tiny, "responses", ResponsesConfig, ("step1", {}), flags={"split": "train"})
    from_train = ("responses", {"split": "train"})
    make(tiny, "pseudolabels", PseudolabelConfig, from_train, flags={"refine": False}, refine=False)
    found = states(tiny, capsys)
    fresh = ["step1", "responses/train", "pseudolabels/no-refine"]
    assert [found[name] for name in fresh] == [("fresh", [])] * 3
    assert found["step2"][0] == "missing"

    old = context_of(tiny).find_input("step1").digest
    make(dataclasses.replace(tiny, set=["epochs=3"]), "step1", Step1Config)
    new = context_of(tiny).find_input("step1").digest
    found = states(tiny, capsys)
    assert found["step1"] == ("fresh", [])  # made as its manifest says it was to be made
    assert found["responses/train"] == ("stale", [f"inputs.step1: {old} → {new}"])
    # Made from the responses of before, which are what is there: stale with them.
    state, (why,) = found["pseudolabels/no-refine"]
    assert state == "stale"
    assert why.startswith("made from responses/train, which is stale: inputs.step1")
    config = tiny.runs / "c.toml"
    config.write_text("[step1]\nlr = 1.0\n")
    found = states(dataclasses.replace(tiny, config=config), capsys)
    assert sorted(found["step1"][1]) == ["configuration.epochs: 3 → 2", "configuration.lr: 5e-05 → 1.0"]


def test_a_changed_card_is_a_reason(tiny, capsys):
    make(tiny, "step1", Step1Config)
    card = Path(tiny.dataset)
    card.write_text(card.read_text().replace("epochs = 2", "epochs = 7"))
    assert states(tiny, capsys)["step1"] == ("stale", ["configuration.epochs: 2 → 7"])


def test_a_raised_code_version_makes_all_behind_it_stale(tiny, capsys, monkeypatch):
    make(tiny, "step1", Step1Config)
    make(tiny, "responses", ResponsesConfig, ("step1", {}), flags={"split": "train"})
    make(
        tiny, "pseudolabels", PseudolabelConfig, ("responses", {"split": "train"}), flags={"refine": True}, refine=True
    )
    monkeypatch.setitem(STAGES, "step1", dataclasses.replace(STAGES["step1"], code_version=99))
    found = states(tiny, capsys)
    assert [found[name][0] for name in ("step1", "responses/train", "pseudolabels/refine")] == ["stale"] * 3
    assert "code_version" in found["pseudolabels/refine"][1][0]


def test_replaced_images_make_what_was_made_of_them_stale(tiny, capsys):
    make(tiny, "step1", Step1Config)
    make(tiny, "responses", ResponsesConfig, ("step1", {}), flags={"split": "val"})
    path = tiny.data_root / "tiny" / "images" / "b.png"
    path.write_bytes(path.read_bytes() + b" ")
    found = states(tiny, capsys)
    assert found["step1"] == ("fresh", [])
    assert found["responses/val"][0] == "stale"
    assert found["responses/val"][1][0].startswith("inputs.images: ")


def test_a_second_call_opens_no_file_of_the_data_set(tiny, capsys, monkeypatch):
    make(tiny, "step1", Step1Config)
    make(tiny, "responses", ResponsesConfig, ("step1", {}), flags={"split": "val"})
    opened = []
    really_open = Path.open

    def note_and_open(path, *arguments, **named):
        opened.append(path)
        return really_open(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", note_and_open)
    assert states(tiny, capsys)["responses/val"] == ("fresh", [])
    assert [path for path in opened if path.is_relative_to(tiny.data_root)] == []
    annotations = tiny.data_root / "tiny" / "pairs.jsonl"
    os.utime(annotations, (0, 0))
    assert states(tiny, capsys)["responses/val"] == ("fresh", [])
    assert opened.count(annotations) == 1


def test_damage_and_broken_runs(tiny, capsys):
    make(tiny, "step1", Step1Config)
    (context_of(tiny).find_input("step1").path / "result").write_bytes(b"x")
    (tiny.runs / "tiny" / "step2" / "0123456789ab.partial").mkdir(parents=True)
    assert states(tiny, capsys)["step1"][0] == "fresh"
    with pytest.raises(RisError, match=r"^damaged: .*/step1/[0-9a-f]{12}; `ris status --repair` mends what can be"):
        call(status.run, dataclasses.replace(tiny, json=True), verify=True)
    found = {row["artifact"]: (row["state"], row["why"]) for row in json.loads(capsys.readouterr().out)}
    assert found["step1"] == ("damaged", ["result: not the bytes that were published"])
    state, (why,) = found["step2"]
    assert state == "partial"
    assert why.startswith("broken off; ris train-step2 --dataset ")


def test_artifacts_that_no_link_leads_to_are_verified_too(tiny, capsys):
    make(tiny, "step1", Step1Config)
    old = context_of(tiny).find_input("step1").path
    make(dataclasses.replace(tiny, set=["epochs=3"]), "step1", Step1Config)
    (old / "result").write_bytes(b"x")
    assert states(tiny, capsys)["step1"][0] == "fresh"
    with pytest.raises(RisError, match=f"^damaged: .*/{old.name};"):
        call(status.run, tiny, verify=True)


def test_an_unreadable_manifest_is_a_row_of_the_table(tiny, capsys):
    make(tiny, "step1", Step1Config)
    path = context_of(tiny).find_input("step1").path / "manifest.json"
    path.write_text("{")
    with pytest.raises(RisError, match=r"^damaged: "):
        call(status.run, tiny)
    line = next(line for line in capsys.readouterr().out.splitlines() if "step1" in line)
    assert "damaged manifest" in line


def test_the_tree_shows_what_reads_what(tiny, capsys):
    make(tiny, "step1", Step1Config)
    for split in ("train", "val"):
        make(tiny, "responses", ResponsesConfig, ("step1", {}), flags={"split": split})
    from_train = ("responses", {"split": "train"})
    make(tiny, "pseudolabels", PseudolabelConfig, from_train, flags={"refine": True}, refine=True)
    make(tiny, "step2", Step2Config, ("pseudolabels", {"refine": True}), ("step1", {}), flags={"labels": "pseudo"})
    call(status.run, tiny)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["artifact", "state", "finished", "time", "size", "digest", "why"]
    assert [line.rpartition("fresh")[0].rstrip() or line.partition("missing")[0].rstrip() for line in lines[1:]] == [
        "step1",
        "├─ responses/train",
        "│  └─ pseudolabels/refine",
        "│     └─ step2/pseudo",  # reads step1 as well
        "└─ responses/val",
        "scores",
        "report",
    ]
    assert " kB " in lines[2]


def test_before_anything_is_made_the_tree_is_that_of_the_stages(tiny, capsys):
    call(status.run, tiny)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("missing")[0].rstrip() for line in lines[1:]] == [
        "step1", "└─ responses", "   └─ pseudolabels", "      └─ step2", "scores", "report",
    ]  # fmt: skip


def test_a_running_stage_names_who_runs_it(tiny, capsys):
    config = context_of(tiny).resolve(Step1Config, "step1")
    with publish(context_of(tiny).request("step1", config)):
        state, (why,) = states(tiny, capsys)["step1"]
    assert (state, why) == ("running", f"by process {os.getpid()} on {socket.gethostname()}")
