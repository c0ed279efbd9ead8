"""Batches as tensors: each image read once for all its refs in the batch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.datasets.records import Dataset, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.masks import load_label, resize_labels
from ris_pipeline.training.draws import Draw, Plan
from ris_pipeline.training.readers import read_ahead


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
        return load_label(label_path(self.folder, ref.ref_id))


class _Steps:
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
            hw = (self.input_size, self.input_size)
            loaded = [self.labels.load(dataset, ref)[None] for ref in refs]
            labels = torch.from_numpy(np.concatenate([resize_labels(label, hw) for label in loaded]))
        return Batch(pixels, torch.tensor([row[ref.image_id] for ref in refs]), draws, labels)


def read_batches(
    plan: Plan, steps: range, input_size: int, workers: int, labels: Labels | None = None
) -> Generator[Batch]:
    """The batches of the given steps in order, read ahead by worker processes.

    Raises RisError for a data set without refs.
    """
    if not plan.dataset.refs:
        raise RisError(f"{plan.dataset.name} has no refs in split {plan.dataset.split!r}: nothing to train on")
    return read_ahead(_Steps(plan, input_size, labels), steps, workers)
