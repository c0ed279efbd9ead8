"""What the two trainings can do beside training: validate, start from other weights, try a part."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from calls import places_in
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.layout import TRAINING_LOG, WEIGHTS


@pytest.fixture
def ris(tmp_path: Path, write_tiny_card: Callable[..., Path], call_ris: Callable[..., int]) -> Callable[..., int]:
    """A function that runs one command on a generated data set of its own."""
    write_tiny_card(tmp_path, train=4, val=2)

    def run(*arguments: object) -> int:
        return call_ris(*arguments, **places_in(tmp_path))

    assert run("data", "make-shapes") == 0
    return run


def read_log(artifact: Any) -> list[dict[str, float]]:
    return [json.loads(line) for line in (artifact.path / TRAINING_LOG).read_text().splitlines()]


@pytest.mark.parametrize("command", [["train-step1"], ["train-step2", "--oracle"]])
def test_every_epoch_is_validated(command, ris, tmp_path):
    settings = ["--set", "epochs=2", "--set", "validate=val", "--set", "validate_refs=2", "--set", "select=miou"]
    assert ris(*command, *settings) == 0
    stage = command[0].removeprefix("train-")
    flags = {"labels": "true"} if stage == "step2" else {}
    artifact = find_latest(tmp_path / "runs", "tiny", stage, **flags)
    assert artifact is not None
    assert "validation" in artifact.manifest["inputs"]
    log = read_log(artifact)
    validated = [line["step"] for line in log if "val_miou" in line]
    assert validated == [len(log) // 2 - 1, len(log) - 1]
    assert all(0 <= line["val_pointit"] <= 100 for line in log if "val_miou" in line)


def test_a_selection_without_a_validation_is_refused(ris, capsys):
    assert ris("train-step1", "--set", "select=miou") == 1
    assert "select = 'miou': should come with a split to select on" in capsys.readouterr().err


def test_a_dry_trial_is_kept_apart(ris, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert ris("train-step1", "--limit", 3, "--set", "batch_size=2") == 0
    assert find_latest(runs, "tiny", "step1") is None
    trial = find_latest(runs, "tiny", "step1", limit="first-3")
    assert trial is not None
    assert trial.manifest["counts"]["refs"] == 3
    capsys.readouterr()
    assert ris("dump-responses", "--split", "val") == 1
    assert "no finished step1 yet" in capsys.readouterr().err

    assert ris("train-step1") == 0
    whole = find_latest(runs, "tiny", "step1")
    assert whole is not None
    assert whole.manifest["counts"]["refs"] > 3
    assert ris("train-step1", "--limit", 3, "--set", "batch_size=2") == 0
    assert "step1 first-3: up to date" in capsys.readouterr().err
    assert find_latest(runs, "tiny", "step1").digest == whole.digest


@pytest.mark.parametrize("command", [["train-step1"], ["train-step2", "--oracle"]])
def test_a_warm_start_begins_where_the_other_training_ended(command, ris, tmp_path):
    """At a rate of next to nothing the weights stay those of the source, and BatchNorm's statistics alone move."""
    stage = command[0].removeprefix("train-")
    flags = {"labels": "true"} if stage == "step2" else {}
    assert ris(*command, "--set", "lr=1e-2") == 0
    first = find_latest(tmp_path / "runs", "tiny", stage, **flags)
    assert first is not None
    still = ["--set", "lr=1e-12", "--set", "backbone_lr=0", "--set", "weight_decay=0"]
    assert ris(*command, *still, "--seed", 1, "--init", first.path) == 0
    second = find_latest(tmp_path / "runs", "tiny", stage, **flags)
    assert second.digest != first.digest
    sha256 = hashlib.sha256((first.path / WEIGHTS).read_bytes()).hexdigest()
    assert second.manifest["inputs"]["init"] == sha256[:12]
    before, after = (load_file(artifact.path / WEIGHTS) for artifact in (first, second))
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    assert ris("status") == 0
    assert find_latest(tmp_path / "runs", "tiny", stage, **flags).digest == second.digest


def test_an_init_that_is_no_such_network_is_one_error(ris, tmp_path, capsys):
    assert ris("train-step1") == 0
    step1 = find_latest(tmp_path / "runs", "tiny", "step1")
    capsys.readouterr()
    for init, words in (
        (tmp_path / "nothing.pth", "nothing.pth: no such file"),
        (step1.path / TRAINING_LOG, "metrics.jsonl: damaged, or not a file of tensors"),
        (step1.path, "model.safetensors: not the weights of this network"),
    ):
        assert ris("train-step2", "--oracle", "--init", init) == 1
        assert words in capsys.readouterr().err
    with (step1.path / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert ris("train-step1", "--init", step1.path) == 1
    assert "not the bytes that were published" in capsys.readouterr().err
