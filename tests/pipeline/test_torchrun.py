"""One training by several processes, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ris_pipeline.artifacts import find_latest
from ris_pipeline.integrity import find_damage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[2]
STEP1 = ["train-step1", "--set", "epochs=2", "--set", "batch_size=2", "--set", "refs_per_image=1"]


def test_two_processes_make_one_artifact(tmp_path, write_tiny_card):
    write_tiny_card(tmp_path, train=4, val=1)
    options = ["--dataset", "tiny.toml", "--data-root", "data", "--runs", "runs", "--workers", "0", "--device", "cpu"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stages.cli"]
    alone = ["-m", "stages.cli"]
    results = [
        subprocess.run(
            [sys.executable, *how, *command, *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        for how, command in ((alone, ["data", "make-shapes"]), (launch, STEP1), (launch, STEP1))
    ]
    for result in results:
        assert result.returncode == 0, result.stderr
    first, second = results[1:]
    assert first.stderr.count("step1: runs") == 1
    assert second.stderr.count("step1: up to date") == 1
    assert first.stdout == second.stdout
    assert len(first.stdout.splitlines()) == 1  # one process speaks

    step1 = find_latest(tmp_path / "runs", "tiny", "step1")
    assert step1 is not None
    assert [path.name for path in step1.path.parent.iterdir() if not path.is_symlink()] == [step1.digest]
    assert find_damage(step1.path) == []
    assert step1.manifest["host"]["ranks"] == 2
    refs, steps = step1.manifest["counts"]["refs"], step1.manifest["counts"]["steps"]
    assert steps == 2 * (refs // 4)  # two epochs of batches of 2 refs × 2 processes
    lines = (step1.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(steps))
