"""Damaged, wrong and hostile checkpoints: one line each, nothing executed, nothing left behind."""

import os
import pickle
import zipfile
from pathlib import Path

import PIL.Image
import pytest
import torch


@pytest.fixture
def fails(tmp_path, call_ris, capsys, monkeypatch):
    """A function that gives a file to import-checkpoint and to predict, and returns the one line of each."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (8, 8)).save("a.png")

    def run(file: Path) -> tuple[str, str]:
        lines = []
        for command in (
            ["import-checkpoint", file, "--out", "imported"],
            ["predict", "a.png", "dog", "--checkpoint", file, "--out", "predicted"],
        ):
            assert call_ris(*command, device="cpu", quiet=True) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.count("\n") == 1, captured.err
            assert captured.err.startswith(f"ris: {file}: ")
            assert "--debug" not in captured.err  # foreseen, not caught at the last moment
            lines.append(captured.err)
        assert sorted(path.name for path in Path().iterdir()) == sorted({"a.png", file.name})
        return lines[0], lines[1]

    return run


class Payload:
    """Leaves a file behind where a pickle of it is loaded as Python loads it."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def write_pickle(path):
    path.write_bytes(pickle.dumps({"model": Payload()}, protocol=2))


def write_zip_of_torch(path):
    torch.save({"model": {"vis_project.weight": torch.ones(1)}, "optimizer": Payload()}, path)


def write_old_format(path):
    torch.save({"model": Payload()}, path, _use_new_zipfile_serialization=False)


def write_torchscript(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/constants.pkl", pickle.dumps(()))
        archive.writestr("x/data.pkl", pickle.dumps(Payload()))


@pytest.mark.parametrize("write", [write_pickle, write_zip_of_torch, write_old_format, write_torchscript])
def test_a_payload_does_not_run(write, fails, tmp_path):
    file = tmp_path / "evil.pth"
    write(file)
    for line in fails(file):
        assert "damaged, or not a file of tensors only (" in line
        assert "mkdir" in line
    assert not Path("executed").exists()


def test_the_payload_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))
    assert Path("executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file(share, fails, tiny_files, tmp_path):
    whole = tiny_files["tris-step1"].read_bytes()
    file = tmp_path / "short.pth"
    file.write_bytes(whole[: int(share * len(whole))])
    for line in fails(file):
        assert "damaged, or not a file of tensors only (" in line
        assert "download it again" in line


@pytest.mark.parametrize("kind", ["tris-step1", "tris-step2", "irn"])
def test_every_wrong_entry_is_named(kind, released_state, write_released, fails, tmp_path):
    state = dict(released_state(kind))
    names = list(state)
    missing, misshapen = names[3], next(name for name in reversed(names) if state[name].ndim == 4)
    state[misshapen] = state[misshapen][:, :-1].clone()
    del state[missing]
    state["stranger"] = torch.ones(2)
    file = write_released(kind, state, tmp_path / "wrong.pth")
    for line in fails(file):
        assert f"missing: {missing};" in line
        assert "surplus: stranger;" in line
        assert f"misshapen: {misshapen} {tuple(state[misshapen].shape)} for " in line


def test_only_the_first_few_and_how_many(released_state, write_released, fails, tmp_path):
    state = {name: value for name, value in released_state("tris-step1").items() if "attn_fusion.t_" not in name}
    line, _ = fails(write_released("tris-step1", state, tmp_path / "wrong.pth"))
    assert line.count("attn_fusion.t_") == 3
    assert " and 5 more)" in line


def test_two_names_of_one_tensor_that_differ(released_state, write_released, fails, tmp_path):
    file = write_released("irn", released_state("irn"), tmp_path / "wrong.pth")
    entries = torch.load(file)
    entries["stage3.0.1.conv2.weight"] = entries["stage3.0.1.conv2.weight"] + 1
    torch.save(entries, file)
    for line in fails(file):
        assert "stage3.0.1.conv2.weight and resnet50.layer2.1.conv2.weight differ" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"layer.weight": torch.ones(2)}}, "no checkpoint of tris-step1, tris-step2, irn, clip; its entries"),
        ({"model": {}}, "its entries: none"),
        ({"model": {"a": {"b": torch.ones(2)}}}, "not a flat state dict"),
        ([torch.ones(2)], "damaged, or not a file of tensors only"),
        (torch.ones(2), "damaged, or not a file of tensors only"),
    ],
)
def test_something_else(content, message, fails, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    for line in fails(tmp_path / "other.pth"):
        assert message in line


def test_our_own_weights_are_told_from_released_ones(released_state, fails, tmp_path):
    state = released_state("tris-step1")
    torch.save({name.replace("backbone.", "clip.model."): t for name, t in state.items()}, tmp_path / "own.pth")
    for line in fails(tmp_path / "own.pth"):
        assert "already imported; give the folder" in line


def test_an_irnet_does_not_segment(tiny_files, tmp_path, call_ris, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (8, 8)).save("a.png")
    assert call_ris("predict", "a.png", "dog", "--checkpoint", tiny_files["irn"], device="cpu", quiet=True) == 1
    assert "a checkpoint of kind irn, which does not segment" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
