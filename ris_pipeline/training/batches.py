"""Batches as tensors: each image read once for all its refs in the batch."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.datasets.records import Dataset, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.masks import load_label
from ris_pipeline.training.draws import Draw, Plan

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """N refs on B ≤ N images: pixels float (B, 3, S, S); image_of int64 (N,), each ref's row in pixels;
    the drawn sentences; labels uint8 (N, S, S), 0, 1 or 255, in Step-2 only."""

    pixels: Tensor
    image_of: Tensor
    draws: list[Draw]
    labels: Tensor | None


@dataclass(frozen=True)
class Labels:
    """Where Step-2's targets come from: a folder of <ref_id>.png, or the true masks for the oracle."""

    folder: Path | None

    def load(self, dataset: Dataset, ref: Ref) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The ref's label, uint8 (H, W)."""
        if self.folder is None:
            return dataset.load_mask(ref).astype(np.uint8)
        return load_label(self.folder / f"{ref.ref_id}.png")


class _Steps(TorchDataset[Batch]):
    def __init__(self, plan: Plan, input_size: int, labels: Labels | None) -> None:
        self.plan, self.input_size, self.labels = plan, input_size, labels
        self._epoch: tuple[int, list[list[Draw]]] | None = None

    def __getitem__(self, step: int) -> Batch:
        epoch, i = divmod(step, self.plan.n_steps)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self.plan.draw_epoch(epoch))
        draws = self._epoch[1][i]
        dataset = self.plan.dataset
        refs = [dataset.refs[draw.ref] for draw in draws]
        image_ids = list(dict.fromkeys(ref.image_id for ref in refs))
        row = {image_id: k for k, image_id in enumerate(image_ids)}
        pixels = torch.stack([to_pixels(load_image(dataset.images[i]), self.input_size) for i in image_ids])
        labels = None
        if self.labels is not None:
            labels = torch.stack([self._resize(self.labels.load(dataset, ref)) for ref in refs])
        return Batch(pixels, torch.tensor([row[ref.image_id] for ref in refs]), draws, labels)

    def _resize(self, label: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
        """Nearest pixel, so that no value between 0, 1 and 255 comes up."""
        h, w = label.shape
        y = ((np.arange(self.input_size) + 0.5) * h / self.input_size).astype(int)
        x = ((np.arange(self.input_size) + 0.5) * w / self.input_size).astype(int)
        return torch.from_numpy(label[y[:, None], x[None, :]])


def _only(batches: list[Batch]) -> Batch:
    return batches[0]


def read_batches(
    plan: Plan, steps: range, input_size: int, workers: int, labels: Labels | None = None
) -> Iterator[Batch]:
    """The batches of the given steps in order, read ahead by worker processes.

    Raises RisError for a data set without refs.
    """
    if not plan.dataset.refs:
        raise RisError(f"{plan.dataset.name} has no refs in split {plan.dataset.split!r}: nothing to train on")
    loader = DataLoader(
        _Steps(plan, input_size, labels),
        batch_size=1,
        sampler=steps,
        collate_fn=_only,
        **loader_settings(workers),
    )
    return read_loader(loader)


def loader_settings(workers: int) -> dict[str, Any]:
    """What all DataLoaders here have in common: processes that heed their parent, no use of torch's random numbers."""
    return {
        "num_workers": workers,
        "worker_init_fn": _prepare_process if workers else None,
        "generator": torch.Generator(),  # or each run would take a number of the training's own
    }


def read_loader(loader: Iterable[T]) -> Iterator[T]:
    """What a DataLoader gives; a RisError of one of its processes is raised again with its own line alone."""
    try:
        yield from loader
    except RisError as error:
        # torch puts the process's traceback into the message; what was raised there ends it.
        line = str(error).rpartition(f"{RisError.__module__}.{RisError.__name__}: ")[2]
        raise RisError(line.strip()) from error


def _prepare_process(_: int) -> None:
    torch.set_num_threads(1)
    # A terminal or a batch system sends its signal to all processes; this one has to go on until the training
    # has ended its step. DataLoader sends SIGTERM to a process that hangs: a second one always ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _obey_the_next)


def _obey_the_next(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
