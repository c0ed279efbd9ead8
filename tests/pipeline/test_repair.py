"""`ris status --repair` takes out what is damaged; the stage makes exactly that again, with the published bytes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from calls import places_in


@pytest.fixture(scope="module")
def scored(project, ris):
    ris(project, "score", "--split", "train")
    return project


@pytest.fixture
def status(call_ris, capsys) -> Callable[..., tuple[int, str, list[dict]]]:
    """Exit status, stderr and the damaged rows of `ris status` on a project."""

    def run(root: Path, *arguments: str) -> tuple[int, str, list[dict]]:
        capsys.readouterr()
        code = call_ris("status", *arguments, "--json", **places_in(root))
        out, err = capsys.readouterr()
        assert out, err
        return code, err, [row for row in json.loads(out) if row["state"] == "damaged"]

    return run


def latest(root: Path, stage: str) -> Path:
    return (root / "runs" / "tiny" / stage).resolve()


def checksums(root: Path) -> dict[str, str]:
    files = [path for path in (root / "runs").rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def first_label(folder: Path) -> Path:
    return min(path for path in folder.glob("*.png") if path.stem.isdecimal())


DAMAGES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "a block of logits": ("responses/latest-train", lambda a: a / "train.zarr/logits/c/0/0/0"),
    "a block of PRMS scores": ("responses/latest-train", lambda a: a / "train.zarr/prms_score/c/0"),
    "PRMS's choice": ("responses/latest-val", lambda a: a / "val.zarr/selected/c/0"),
    "ids": ("responses/latest-val", lambda a: a / "val.zarr/sent_id/c/0"),
    "metadata": ("responses/latest-train", lambda a: a / "train.zarr/logits/zarr.json"),
    "a plain label": ("pseudolabels/latest-no-refine", first_label),
    "a refined label": ("pseudolabels/latest-refine", first_label),
    "a seed": ("pseudolabels/latest-refine", lambda a: first_label(a / "seeds")),
    "the contact sheet": ("pseudolabels/latest-refine", lambda a: a / "contact-sheet.png"),
    "IRNet": ("pseudolabels/latest-refine", lambda a: a / "irnet.safetensors"),
    "IRNet's log": ("pseudolabels/latest-refine", lambda a: a / "metrics.jsonl"),
    "scores": ("scores/latest-prms-train", lambda a: a / "scores.json"),
    "outcomes": ("scores/latest-prms-train", lambda a: a / "outcomes.csv"),
    "a manifest": ("scores/latest-chance-train", lambda a: a / "manifest.json"),
    "a table of files": ("scores/latest-step1-train", lambda a: a / "files.json"),
}


RECORDS = ("manifest.json", "files.json")  # of these a run makes others, with its time of day


def test_what_is_damaged_is_taken_out_and_made_again_byte_for_byte(scored, copy_of_project, status, ris, chain):
    """All at once. The commands of the chain then make what is missing, and nothing else."""
    before = checksums(copy_of_project)
    damaged = []
    for stage, choose in DAMAGES.values():
        path = choose(latest(copy_of_project, stage))
        flip(path)
        damaged.append(str(path.relative_to(copy_of_project)))
    code, _, rows = status(copy_of_project, "--verify")
    named = {f"{Path(row['path']).relative_to(copy_of_project)}/{line.split(':')[0]}"
             for row in rows for line in row["why"]}  # fmt: skip
    assert code == 1
    assert named == set(damaged)

    code, errors, rows = status(copy_of_project, "--repair")
    assert (code, rows) == (0, []), errors
    assert "to make them again, run: ris dump-responses --split train --dataset " in errors
    assert "to make them again, run: ris make-pseudolabels --no-refine --dataset " in errors
    for command in (*chain, ["score", "--split", "train"]):
        ris(copy_of_project, *command)
    assert status(copy_of_project, "--verify")[0] == 0
    after = checksums(copy_of_project)
    assert sorted(after) == sorted(before)
    assert [name for name in after if after[name] != before[name] and Path(name).name not in RECORDS] == []


def test_only_what_is_damaged_is_made(copy_of_project, status, monkeypatch, ris):
    from ris_pipeline.refine import pseudolabels

    folder = latest(copy_of_project, "pseudolabels/latest-no-refine")
    label = first_label(folder)
    flip(label)
    made = []
    write = pseudolabels.write_labels
    monkeypatch.setattr(
        pseudolabels, "write_labels", lambda folder, ids, labels: (made.extend(ids), write(folder, ids, labels))
    )
    assert status(copy_of_project, "--repair")[0] == 0
    assert not folder.exists()
    ris(copy_of_project, "make-pseudolabels", "--no-refine")
    assert made == [int(label.stem)]


def test_weights_are_not_guessed(copy_of_project, status):
    weights = latest(copy_of_project, "step1/latest") / "model.safetensors"
    flip(weights)
    spoilt = weights.read_bytes()
    code, errors, rows = status(copy_of_project, "--repair")
    assert code == 1
    assert [row["artifact"] for row in rows] == ["step1"]
    assert "model.safetensors: a training cannot be repeated in part" in errors
    assert "ris train-step1 --force --dataset" in errors
    assert weights.read_bytes() == spoilt


def test_a_run_that_broke_off_is_not_overwritten(copy_of_project, status):
    folder = latest(copy_of_project, "pseudolabels/latest-no-refine")
    flip(first_label(folder))
    folder.with_name(f"{folder.name}.partial").mkdir()
    code, errors, _ = status(copy_of_project, "--repair")
    assert code == 1
    assert "a run broke off there; run its command first" in errors
    assert folder.exists()


def test_a_stage_refuses_a_damaged_input(copy_of_project, call_ris, capsys):
    label = first_label(latest(copy_of_project, "pseudolabels/latest-refine"))
    flip(label)
    capsys.readouterr()
    assert call_ris("train-step2", "--force", "--quiet", **places_in(copy_of_project)) == 1
    line = capsys.readouterr().err
    assert f"{label.name}: not the bytes that were published" in line
    assert "`ris status --repair`" in line
    assert line.count("\n") == 1
