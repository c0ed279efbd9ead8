"""What the two training stages share: ranks, device, work folder, progress and the log."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.methods.tris import Step1Responder, Step2Responder
from ris_pipeline.process.ranks import Ranks, find_ranks, joined, wait
from ris_pipeline.scoring.validate import take_refs, validate
from ris_pipeline.training.batches import Batch, RefBatches, Targets
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import Task, train
from stages.common import device_of, open_dataset
from stages.options import StageOptions
from stages.progress import progress, report_steps


def train_and_publish(
    options: StageOptions,
    request: Request,
    config: Step1Config | Step2Config,
    plan: Plan,
    build_task: Callable[[], Task[Batch]],
    targets: Targets | None = None,
) -> None:
    """Train what build_task gives and publish it; under torchrun every process trains and the first one writes."""
    ranks = find_ranks()
    plan = replace(plan, rank=ranks.rank, n_ranks=ranks.n_ranks)
    device = _own_device(options, ranks)
    with joined(ranks, device):
        task = _build_first_alone(build_task, ranks, options.seed)
        work_of_this_rank = (
            publish(request, force=options.force) if ranks.rank == 0 else nullcontext(Work(request.partial, False))
        )
        with work_of_this_rank as work:
            wait()  # for the folder, and for the checkpoint that may lie in it
            validate = _open_validation(options, request.stage, task, config) if ranks.rank == 0 else None
            _fit(options, request.stage, task, plan, config, ranks, device, work, targets, validate)
            work.host |= {"device": str(device), "ranks": ranks.n_ranks}


def _build_first_alone(build_task: Callable[[], Task[Batch]], ranks: Ranks, seed: int) -> Task[Batch]:
    """The task of this process; the first one builds before the others, which find downloaded weights whole."""
    if ranks.rank > 0:
        wait()
    torch.manual_seed(seed)
    task = build_task()
    if ranks.rank == 0:
        wait()
    return task


def _own_device(options: StageOptions, ranks: Ranks) -> torch.device:
    device = device_of(options)
    if device.type == "cuda" and ranks.n_ranks > 1:
        device = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(device)
    return device


def _open_validation(
    options: StageOptions, stage: str, task: Task[Batch], config: Step1Config | Step2Config
) -> Callable[[], dict[str, float]] | None:
    """The function that scores the task's network as it is, None without a split to validate on."""
    if not config.validate:
        return None
    dataset = take_refs(open_dataset(options, config.validate, with_images=True), config.validate_refs, config.select)
    network: Any = task.network
    responder = (Step1Responder if stage == "step1" else Step2Responder)(network, config.input_size)
    return lambda: validate(responder, dataset, config.batch_size)


def _fit(
    options: StageOptions,
    label: str,
    task: Task[Batch],
    plan: Plan,
    config: Step1Config | Step2Config,
    ranks: Ranks,
    device: torch.device,
    work: Work,
    targets: Targets | None,
    validate: Callable[[], dict[str, float]] | None,
) -> None:
    source = RefBatches(plan, config.epochs, config.input_size, targets)
    with progress(options, label, source.n_steps) as advance:
        n_steps = train(
            task, source, work.path, device=device, precision=options.precision, workers=options.workers,
            ranks=ranks, seed=options.seed, report=report_steps(advance),
            validate=validate, select=config.select,
        )  # fmt: skip
    work.counts |= {"steps": n_steps, "refs": len(plan.dataset.refs), "sentences": plan.dataset.n_expressions}
