"""The training loop: any task on any source of batches, with exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ris_pipeline.artifacts.layout import WEIGHTS
from ris_pipeline.errors import RisError
from ris_pipeline.process import signals as stops
from ris_pipeline.process.device import autocast
from ris_pipeline.process.ranks import Ranks
from ris_pipeline.training.checkpoints import Best, Stateful, TrainingState, seed_step
from ris_pipeline.training.compiled import compile_parts
from ris_pipeline.training.readers import Source, read_ahead
from ris_pipeline.training.sharing import mean_over_ranks, share_batch_norm

Report = Callable[[int, dict[str, float]], None]
B = TypeVar("B")


class Task(nn.Module, Generic[B]):
    """A network and how it learns: its losses, optimiser and schedule."""

    network: nn.Module  # what is saved
    poly_power: float  # of the polynomial decay, unless `rate` is another
    clip_grad: float | None = None  # largest norm of the gradient of all parameters together

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return next(self.network.parameters()).device

    def forward(self, batch: B) -> dict[str, Tensor]:
        """Return the losses by name, scalars; "loss" is minimised, the others are logged.

        Of several processes each has its part of the batch, and the mean of what they return is what one would return
        for all of it (`training.sharing`).
        """
        raise NotImplementedError

    def optimizer(self) -> Optimizer:
        """Return a new optimiser of the network; `rate` scales the learning rates of its groups."""
        raise NotImplementedError

    def rate(self, step: int, n_steps: int) -> float:
        """Return the factor on every group's learning rate: (1 − step/n_steps)^poly_power."""
        return float((1 - step / n_steps) ** self.poly_power)

    def before_step(self, step: int, n_steps: int, optimizer: Optimizer) -> None:
        """Do what has to precede the forward pass; the groups' learning rates are set."""

    def after_step(self, step: int, optimizer: Optimizer) -> None:
        """Do what has to follow the optimiser's step."""

    def complete(self, source: Source[B], workers: int) -> None:
        """Do what has to follow the last step; the network is in evaluation mode."""


def train(
    task: Task[B],
    source: Source[B],
    folder: Path,
    *,
    device: torch.device,
    precision: str,
    workers: int,
    ranks: Ranks,
    seed: int,
    report: Report,
    weights: str = WEIGHTS,
    validate: Callable[[], Mapping[str, float]] | None = None,
    select: str = "last",
    compiled: bool = False,
) -> int:
    """Train the task's network, leave its weights in folder/`weights`, and return the number of steps.

    An interrupted run resumes at its last checkpoint and ends in the same weights. Several `ranks` share each batch
    and make, but for rounding and random draws inside of a network, the weights that one makes of it. Every step is
    logged in folder/metrics.jsonl: its losses, and the last group's learning rate as lr. `report(step, losses)` follows
    each step. Under fp16 the loss is scaled so that small gradients do not vanish.

    `validate` scores the network in evaluation mode after every epoch, on rank 0 while the others wait; its values are
    logged with the epoch's last step, as val_<name>. The weights are those of the last step, or of the epoch with the
    highest of the values named `select`, the first of equal ones.
    `compiled`: parts of the networks run as torch.compile makes them, in training only.
    Raises RisError at a loss that is not finite; the last checkpoint stays.
    """
    n_steps = source.n_steps
    task.to(device).train()
    optimizer = task.optimizer()
    base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    parts: dict[str, Stateful] = {"network": task.network, "optimizer": optimizer, "scaler": scaler}
    best = Best()
    if select != "last":
        parts["best"] = best
    state = TrainingState(folder, parts, is_writer=ranks.rank == 0)
    steps = range(state.load(), n_steps)
    if compiled:
        compile_parts(task)
    model = _distribute(task)
    with closing(read_ahead(source, steps, workers, pinned=device.type == "cuda")) as batches, stops.deferred():
        for step, batch in zip(steps, batches, strict=True):
            seed_step(seed, step, ranks.rank)
            rate = task.rate(step, n_steps)
            for group, base in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = base * rate
            task.before_step(step, n_steps, optimizer)
            with autocast(device, precision):
                losses = model(batch)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(losses["loss"]).backward()
            if task.clip_grad is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(task.network.parameters(), task.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            # Not before: reading a value waits for the device, which then has no backward pass to go on with.
            found = torch.stack([mean_over_ranks(value.detach()) for value in losses.values()]).tolist()
            values = dict(zip(losses, found, strict=True))
            if not math.isfinite(values["loss"]):
                advice = ", or use --precision bf16" if precision == "fp16" else ""
                raise RisError(f"step {step}: the loss is not finite; {source.describe(step)}{advice}")
            task.after_step(step, optimizer)
            if validate is not None and ranks.rank == 0 and (step + 1) % source.steps_per_epoch == 0:
                task.eval()
                scores = validate()
                task.train()
                values |= {f"val_{name}": value for name, value in scores.items()}
                if select != "last":
                    best.offer(scores[select], task.network)
            report(step, values)
            state.step_done(**values, lr=optimizer.param_groups[-1]["lr"])
    task.eval()
    if not state.is_finished:
        if best.weights:
            task.network.load_state_dict(best.weights)
        task.complete(source, workers)
    state.finish(folder / weights, task.network.state_dict())
    return n_steps


def _distribute(task: Task[Any]) -> Any:
    if not torch.distributed.is_initialized():
        return task
    share_batch_norm(task.network)
    # The attention pooling and CLIP's own scale take no part in the losses.
    ids = [task.device.index] if task.device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=ids, find_unused_parameters=True)
