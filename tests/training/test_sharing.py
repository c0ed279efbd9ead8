"""A batch that is shared among processes teaches what it teaches one.

In double precision, where rounding hides no wrong weight: the networks', and the losses' too, which otherwise
count in float32.
"""

import json
import multiprocessing
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ris_pipeline.artifacts.layout import TRAINING_LOG, WEIGHTS
from ris_pipeline.config import PseudolabelConfig, Step1Config, Step2Config
from ris_pipeline.datasets import Dataset
from ris_pipeline.datasets.io.labels import save_label
from ris_pipeline.methods import amr, groupvit, supervised, wwbl
from ris_pipeline.methods.amr import AmrTask
from ris_pipeline.methods.configs import AmrConfig, GroupVitConfig, SupervisedConfig, WWbLConfig
from ris_pipeline.methods.groupvit import GroupVitTask
from ris_pipeline.methods.wwbl import WWbLTask
from ris_pipeline.networks.amr import Amr
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.networks.parts.stages import ClipStages
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.networks.vgg import build_vgg
from ris_pipeline.networks.wwbl import WWbL
from ris_pipeline.process import ranks as process_ranks
from ris_pipeline.process.ranks import Ranks
from ris_pipeline.training.batches import RefBatches, TrueMasks
from ris_pipeline.training.contrastive import ContrastiveTask, PairBatches, Phase
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.irnet import Cuts, IRNetTask, SeedFile
from ris_pipeline.training.loop import Task, train
from ris_pipeline.training.readers import Source
from ris_pipeline.training.sharing import (
    SharedBatchNorm,
    gather_list,
    gather_rows,
    mean_over_ranks,
    share_batch_norm,
    weight_of,
)
from ris_pipeline.training.tasks import Step1Task, Step2Task
from tiny import TINY, build_random, make_noise

N_STEPS = 5
SIZE = 64
Build = Callable[[Dataset, Path, Ranks], tuple[Task[Any], Source[Any]]]


def run_ranks(n_ranks: int, work: Callable[[Ranks], object], folder: Path) -> None:
    """Call `work` in so many processes that torch.distributed connects."""
    context = multiprocessing.get_context("fork")
    store = f"file://{folder / f'store-{n_ranks}'}"
    children = [context.Process(target=_work, args=(Ranks(k, n_ranks, k), work, store)) for k in range(n_ranks)]
    for child in children:
        child.start()
    for child in children:
        child.join(100)
        child.kill()
    assert [child.exitcode for child in children] == [0] * n_ranks


def _work(ranks: Ranks, work: Callable[[Ranks], object], store: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of GroupViT's group tokens: it costs a copy
    process_ranks._LAUNCHER = os.getppid()  # which was read when the parent imported it
    if ranks.n_ranks > 1:
        torch.distributed.init_process_group("gloo", init_method=store, rank=ranks.rank, world_size=ranks.n_ranks)
    work(ranks)
    if ranks.n_ranks > 1:
        torch.distributed.destroy_process_group()


class Doubled:
    """A source whose pixels are float64."""

    def __init__(self, source: Source[Any]) -> None:
        self.source, self.n_steps, self.steps_per_epoch = source, source.n_steps, source.steps_per_epoch

    def __getitem__(self, step: int) -> Any:
        batch = self.source[step]
        if isinstance(batch, tuple):
            return batch[0].double(), batch[1]
        return replace(batch, pixels=batch.pixels.double())

    def describe(self, step: int) -> str:
        return self.source.describe(step)


def train_in_double(build: Build, dataset: Dataset, folder: Path, ranks: Ranks) -> None:
    """Five steps; losses and weights are left in the folder."""
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # this process ends with the training
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    task, source = build(dataset, folder.parent, ranks)
    folder.mkdir(exist_ok=True)
    train(
        task.double(), Doubled(source), folder, device=torch.device("cpu"), precision="fp32", workers=0, ranks=ranks,
        seed=0, report=lambda step, losses: None,
    )  # fmt: skip


def build_step1(dataset: Dataset, folder: Path, ranks: Ranks) -> tuple[Task[Any], Source[Any]]:
    clip = Clip.from_config(TINY)
    task = Step1Task(Step1(clip, clip, hidden=8), Clip.from_config(TINY), Step1Config(lr=1e-2, backbone_lr=1e-3))
    return task, RefBatches(plan_of(dataset, 3, ranks), N_STEPS, SIZE)


def build_step2(dataset: Dataset, folder: Path, ranks: Ranks) -> tuple[Task[Any], Source[Any]]:
    clip = Clip.from_config(TINY)
    task = Step2Task(Step2(clip, clip, widths=(4, 4, 4, 4)), Step2Config(lr=1e-2, backbone_lr=1e-3))
    return task, RefBatches(plan_of(dataset, 0, ranks), N_STEPS, SIZE, TrueMasks())


def plan_of(dataset: Dataset, n_negatives: int, ranks: Ranks) -> Plan:
    """Batches of five refs on three images: parts of 2 and 3, or of 1, 2 and 2."""
    return Plan(dataset, 5, 2, n_negatives, seed=4, ranks=ranks)


def build_irnet(dataset: Dataset, folder: Path, ranks: Ranks) -> tuple[Task[Any], Source[Any]]:
    rng = np.random.default_rng(1)
    files = []
    for ref in dataset.refs:
        seed = np.repeat(np.repeat(rng.choice([0, 1, 255], (5, 5)), 8, 0), 8, 1).astype(np.uint8)
        files.append(SeedFile(dataset.images[ref.image_id], folder / f"{ref.ref_id}.png"))
        if ranks.rank == 0 and not files[-1].seed.exists():
            save_label(files[-1].seed, seed)
    if ranks.n_ranks > 1:
        torch.distributed.barrier()
    config = PseudolabelConfig(irn_epochs=N_STEPS, irn_batch=5, irn_crop=SIZE, radius=3)
    return IRNetTask(IRNet(ClipStages(Clip.from_config(TINY))), config), Cuts(files, config, 0, ranks)


def build_clip(dataset: Dataset, folder: Path, ranks: Ranks) -> tuple[Task[Any], Source[Any]]:
    """Without a warm-up: the moments of AdamW begin anew after the third step."""
    phases = [Phase(name, 96, (1, 2), True, 5, n, n, 0.5) for name, n in (("object", 3), ("scene", 2))]
    return ContrastiveTask(Clip.from_config(TINY), phases), PairBatches(phases, 4, ranks)


def build_amr(dataset: Dataset, folder: Path, ranks: Ranks) -> tuple[Task[Any], Source[Any]]:
    """Two steps of its first part and four of the second, at a rate at which maps stay above 0."""
    clips = [Clip.from_config(TINY) for _ in range(3)]
    network = Amr(ClipStages(clips[0]), ClipStages(clips[1]), clips[2], hidden=8)
    config = AmrConfig(epochs=3, cam_epochs=1, batch_size=3, lr=1e-3)
    return AmrTask(network, config), RefBatches(share(amr.plan(dataset, config, 4), ranks), config.epochs, SIZE)


def build_supervised(dataset: Dataset, folder: Path, ranks: Ranks) -> tuple[Task[Any], Source[Any]]:
    clip = Clip.from_config(TINY)
    config = SupervisedConfig(batch_size=5, refs_per_image=2, lr=1e-2, backbone_lr=1e-3)
    task = supervised.build_task(Step1(clip, clip, hidden=8), config)
    return task, RefBatches(share(supervised.plan(dataset, config, 4), ranks), N_STEPS, SIZE, TrueMasks())


def build_wwbl(dataset: Dataset, folder: Path, ranks: Ranks) -> tuple[Task[Any], Source[Any]]:
    config = WWbLConfig(batch_size=5, refs_per_image=2, input_size=SIZE, lr=1e-2)
    network = WWbL(Clip.from_config(TINY), build_vgg("vgg16", 2, None))
    task = WWbLTask(network, build_random(TINY), config)
    return task, RefBatches(share(wwbl.plan(dataset, config, 4), ranks), N_STEPS, SIZE)


def build_groupvit(dataset: Dataset, folder: Path, ranks: Ranks) -> tuple[Task[Any], Source[Any]]:
    """Without the random numbers by which it draws groups in training mode."""
    pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[methods]'")
    sizes = {
        "side": SIZE, "width": 16, "heads": 2, "depth": 1, "n_first_groups": 6, "n_groups": 3, "text_width": 16,
        "text_heads": 2, "text_layers": 1, "n_tokens": 20, "projection": 16, "embed_dim": 8,
    }  # fmt: skip
    config = GroupVitConfig(weights=None, batch_size=3, input_size=SIZE, lr=1e-3, **sizes)
    network = groupvit.build(config, None)
    network.train = lambda mode=True: nn.Module.train(network, False)
    return GroupVitTask(network, config), RefBatches(share(groupvit.plan(dataset, config, 4), ranks), 3, SIZE)


def share(plan: Plan, ranks: Ranks) -> Plan:
    return replace(plan, ranks=ranks)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_noise(tmp_path, {"size": [40, 40], "counts": [0, 800, 800]})


@pytest.mark.parametrize(
    "build",
    [
        build_step1, build_step2, build_irnet, build_clip,
        build_amr, build_supervised, build_wwbl, build_groupvit,
    ],
)  # fmt: skip
def test_two_and_three_processes_learn_what_one_does(build: Build, dataset: Dataset, tmp_path: Path) -> None:
    found = []
    for n_ranks in (1, 2, 3):
        folder = tmp_path / str(n_ranks)
        run_ranks(n_ranks, lambda ranks, folder=folder: train_in_double(build, dataset, folder, ranks), tmp_path)
        losses = [json.loads(line) for line in (folder / TRAINING_LOG).read_text().splitlines()]
        found.append((losses, load_file(folder / WEIGHTS)))
    (expected, weights), *others = found
    assert len(expected) >= N_STEPS
    for losses, theirs in others:
        for line, other in zip(expected, losses, strict=True):
            assert other == pytest.approx(line, rel=1e-6)  # in each process IRNet adds 1e-5 to the number of pairs
        assert list(theirs) == list(weights)
        errors = {name: float((theirs[name].double() - value.double()).abs().max()) for name, value in weights.items()}
        # Adam makes more than rounding of a gradient that is 0 but for rounding: of a bias before InstanceNorm.
        assert max(errors.values()) < 1e-6, errors


def check_the_parts(ranks: Ranks) -> None:
    """Two processes with 1 and 3 rows."""
    mine = torch.arange(3 * ranks.rank, 3 * ranks.rank + (1, 3)[ranks.rank], dtype=torch.float64)
    rows, first = gather_rows(mine.requires_grad_())
    assert rows.tolist() == [0, 3, 4, 5]
    assert first == ranks.rank
    (rows * (ranks.rank + 1)).sum().backward()
    assert mine.grad is not None
    assert set(mine.grad.tolist()) == {3}  # of both processes
    assert gather_list("ab"[: ranks.rank + 1]) == (["a", "a", "b"], ranks.rank)
    assert float(mean_over_ranks(torch.tensor(ranks.rank))) == 0.5
    assert weight_of(len(mine), mine.device) == (0.5, 1.5)[ranks.rank]


def test_what_two_processes_gather(tmp_path: Path) -> None:
    run_ranks(2, check_the_parts, tmp_path)


def test_a_process_alone_keeps_what_it_has() -> None:
    x = torch.ones(2)
    assert gather_rows(x)[0] is x
    assert mean_over_ranks(x) is x
    assert gather_list(["a"]) == (["a"], 0)
    assert weight_of(7, x.device) == 1


def check_batch_norm(ranks: Ranks) -> None:
    """Parts of 1 and 4 rows against torch's BatchNorm on all five."""
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    whole, shared = nn.Sequential(nn.BatchNorm2d(3)).double(), nn.Sequential(nn.BatchNorm2d(3)).double()
    share_batch_norm(shared)
    assert isinstance(shared[0], SharedBatchNorm)
    rows = (slice(0, 1), slice(1, 5))[ranks.rank]
    y, expected = shared(mine := x[rows].clone().requires_grad_()), whole(x.requires_grad_())
    y.backward(gradient[rows])
    expected.backward(gradient)
    torch.testing.assert_close(y, expected[rows])
    assert x.grad is not None
    torch.testing.assert_close(mine.grad, x.grad[rows])
    assert list(shared.state_dict()) == list(whole.state_dict())
    for found, value in zip(shared.state_dict().values(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(found, value)
    for found, value in zip(shared.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(2 * mean_over_ranks(found.grad), value.grad)
    torch.testing.assert_close(shared.eval()(x), whole.eval()(x))


def test_batch_norm_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    run_ranks(2, check_batch_norm, tmp_path)


def check_that_fixed_statistics_stay(ranks: Ranks) -> None:
    fixed = nn.Sequential(nn.BatchNorm2d(3)).eval()
    share_batch_norm(fixed)
    assert type(fixed[0]) is nn.BatchNorm2d


def test_a_batch_norm_that_does_not_learn_stays(tmp_path: Path) -> None:
    run_ranks(2, check_that_fixed_statistics_stay, tmp_path)
