"""Trainings whose parts torch.compile has made, on the CPU: the same losses, and checkpoints that fit without it."""

from __future__ import annotations

import shutil

import pytest
import torch
from open_clip.transformer import Transformer
from torch import nn

from ris_pipeline.config import Step1Config
from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.bilateral_prompt import BilateralPrompt
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.process.ranks import ALONE
from ris_pipeline.training import checkpoints, compiled
from ris_pipeline.training.batches import RefBatches
from ris_pipeline.training.compiled import compile_parts
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import train
from ris_pipeline.training.tasks import Step1Task
from tiny import TINY, make_noise


def build_task():
    torch.manual_seed(0)
    clip = Clip.from_config(TINY)
    return Step1Task(Step1(clip, clip, hidden=8), Clip.from_config(TINY), Step1Config(epochs=1))


def test_a_network_without_known_parts_is_refused():
    with pytest.raises(RisError, match="--compile knows no part of this network"):
        compile_parts(nn.Sequential(nn.Linear(2, 2)))


def test_all_heavy_parts_are_found_and_no_weight_is_renamed():
    task = build_task()
    names = list(task.state_dict())
    # Of each CLIP a block in each of four stages, and the text transformer; and the bilateral prompt.
    assert compile_parts(task) == 2 * (4 + 1) + 1
    assert list(task.state_dict()) == names


@pytest.mark.filterwarnings("ignore")  # the compiler looks at what warns when it is looked at
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_training_takes_the_same_steps_and_goes_on_without(tmp_path, monkeypatch):
    plan = Plan(make_noise(tmp_path, {"size": [40, 40], "counts": [0, 800, 800]}), 2, 2, 2, seed=4)

    def run(folder, report, *, is_compiled):
        folder.mkdir(exist_ok=True)
        return train(
            build_task(), RefBatches(plan, 1, 64), folder, device=torch.device("cpu"), precision="fp32", workers=0,
            ranks=ALONE, seed=4, report=report, compiled=is_compiled,
        )  # fmt: skip

    def collect(into, until=None):
        def report(step, losses):
            into[step] = losses["loss"]
            if step == until:
                raise KeyboardInterrupt

        return report

    # Two kinds of part: the compiler takes its time for each shape of each.
    monkeypatch.setattr(compiled, "_PARTS", (BilateralPrompt, Transformer))
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    plain: dict[int, float] = {}
    found: dict[int, float] = {}
    run(tmp_path / "plain", collect(plain), is_compiled=False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", collect(found, until=1), is_compiled=True)
    assert found == pytest.approx({step: plain[step] for step in (0, 1)}, rel=1e-4)
    run(tmp_path / "broken", collect(found), is_compiled=False)
    assert found == pytest.approx(plain, rel=1e-4)
