"""What the two trainings can do beside training: validate and select."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.layout import METRICS


@pytest.fixture
def ris(tmp_path: Path, write_tiny_card: Callable[..., Path], call_ris: Callable[..., int]) -> Callable[..., int]:
    """A function that runs one command on a generated data set of its own."""
    card = write_tiny_card(tmp_path, train=4, val=2)
    places = ["--dataset", card, "--data-root", tmp_path / "data", "--runs", tmp_path / "runs"]

    def run(*arguments: object) -> int:
        return call_ris(*arguments, *places, "--workers", 0, "--device", "cpu")

    assert run("data", "make-shapes") == 0
    return run


def read_log(artifact: Any) -> list[dict[str, float]]:
    return [json.loads(line) for line in (artifact.path / METRICS).read_text().splitlines()]


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
