"""What the two training stages share: ranks, device, work folder, progress and the log."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch

from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.process.ranks import Ranks, find_ranks, joined, wait
from ris_pipeline.training.batches import Labels
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import train
from ris_pipeline.training.tasks import Task
from stages.common import device_of
from stages.options import StageOptions
from stages.progress import progress, report_steps


def train_and_publish(
    options: StageOptions,
    request: Request,
    config: Step1Config | Step2Config,
    plan: Plan,
    build_task: Callable[[], Task],
    labels: Labels | None = None,
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
            _fit(options, request.stage, task, plan, config, device, work, labels)
            work.host |= {"device": str(device), "ranks": ranks.n_ranks}


def _build_first_alone(build_task: Callable[[], Task], ranks: Ranks, seed: int) -> Task:
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


def _fit(
    options: StageOptions,
    label: str,
    task: Task,
    plan: Plan,
    config: Step1Config | Step2Config,
    device: torch.device,
    work: Work,
    labels: Labels | None,
) -> None:
    n_steps = config.epochs * plan.n_steps
    with progress(options, label, n_steps) as advance:
        train(
            task, plan, config, folder=work.path, input_size=config.input_size, device=device,
            precision=options.precision, workers=options.workers, report=report_steps(advance), labels=labels,
        )  # fmt: skip
    work.counts |= {"steps": n_steps, "refs": len(plan.dataset.refs), "sentences": plan.dataset.n_expressions}
