"""The one training loop: AdamW, polynomial decay at every step, exact resume."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from ris_pipeline.errors import RisError
from ris_pipeline.training.batches import Batch, Labels, read_batches
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.losses import poly_lr
from ris_pipeline.training.tasks import Optimised, Task

WEIGHTS = "model.safetensors"
RESUME = "resume.pt"
SECONDS_BETWEEN_CHECKPOINTS = 120.0

Report = Callable[[int, dict[str, float]], None]


def train(
    task: Task,
    plan: Plan,
    config: Optimised,
    *,
    folder: Path,
    input_size: int,
    device: torch.device,
    precision: str,
    workers: int,
    report: Report,
    labels: Labels | None = None,
) -> int:
    """Train the task's network and leave folder/model.safetensors; returns the number of steps taken in all.

    A run that broke off is taken up at its last checkpoint and ends in the same weights. report(step, losses)
    is called after every step. Raises RisError at a loss that is not finite; the last checkpoint stays.
    """
    n_steps = config.epochs * plan.n_steps
    task.to(device).to(memory_format=torch.channels_last).train()
    groups = task.network.parameter_groups(config.lr, config.backbone_lr, config.weight_decay)
    base_lrs = [float(group["lr"]) for group in groups]
    # One fused kernel: five times as fast over a CLIP's token embedding.
    optimizer = torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"))
    start = _resume(folder / RESUME, task, optimizer)
    model = _distribute(task, device)
    saved = time.monotonic()
    batches = read_batches(plan, range(start, n_steps), input_size, workers, labels)
    for step, batch in zip(range(start, n_steps), batches, strict=True):
        for group, base in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = base * poly_lr(step, n_steps, config.poly_power)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            losses = model(_move(batch, device))
        if not torch.isfinite(losses["loss"]):
            ref_ids = [plan.dataset.refs[draw.ref].ref_id for draw in batch.draws]
            raise RisError(f"step {step}: the loss is not finite; refs of the batch: {ref_ids}; lower lr")
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        report(step, {name: value.item() for name, value in losses.items()})
        if plan.rank == 0 and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
            _save_resume(folder / RESUME, task, optimizer, step + 1)
            saved = time.monotonic()
    if plan.rank == 0:
        weights = {name: value.detach().cpu().contiguous() for name, value in task.network.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        (folder / RESUME).unlink(missing_ok=True)
    return n_steps


def _move(batch: Batch, device: torch.device) -> Batch:
    pixels = batch.pixels.to(device, non_blocking=True, memory_format=torch.channels_last)
    labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
    return replace(batch, pixels=pixels, image_of=batch.image_of.to(device), labels=labels)


def _distribute(task: Task, device: torch.device) -> Any:
    if not torch.distributed.is_initialized():
        return task
    # The attention pooling and CLIP's own scale take no part in the losses.
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=ids, find_unused_parameters=True)


def _save_resume(path: Path, task: Task, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write all that a later run needs to go on, whole or not at all."""
    state = {
        "network": task.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "random": torch.get_rng_state(),
    }
    unfinished = path.with_suffix(".new")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _resume(path: Path, task: Task, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with: 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    task.network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return int(state["step"])
