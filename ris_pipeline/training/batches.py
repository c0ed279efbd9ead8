"""Batches as tensors: each image read once for all its refs in the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ris_pipeline.arrays import IGNORE
from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.datasets.io.labels import load_label, resize_labels
from ris_pipeline.datasets.records import Dataset, Expression, Image, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.training.cache import ImageCache
from ris_pipeline.training.draws import Draw, Plan


@dataclass(frozen=True)
class Batch:
    """N refs on B ≤ N images; of several processes each has its part of the whole batch."""

    pixels: Tensor  # float (B, 3, S, S)
    image_of: Tensor  # int64 (N,), each ref's row in pixels
    draws: list[Draw]  # N: the sentences
    targets: Tensor | None  # uint8 (N, S, S), 0, 1 or 255; in Step-2 only
    image_ids: tuple[int, ...]  # B

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`, the pixels with channels last."""
        pixels = self.pixels.to(device, non_blocking=True, memory_format=torch.channels_last)
        targets = None if self.targets is None else self.targets.to(device, non_blocking=True)
        return replace(self, pixels=pixels, image_of=self.image_of.to(device, non_blocking=True), targets=targets)

    def pin_memory(self) -> Batch:
        """Return the batch in memory from which `to` copies to a CUDA device without waiting; torch's loader asks."""
        targets = None if self.targets is None else self.targets.pin_memory()
        return replace(self, pixels=self.pixels.pin_memory(), image_of=self.image_of.pin_memory(), targets=targets)


Outline = tuple[list[Draw], Dataset]


class Targets(Protocol):
    """Where Step-2's targets come from."""

    def load(self, dataset: Dataset, ref: Ref, expression: Expression) -> NDArray[np.uint8]:
        """Return the target of a sentence, uint8 (H, W): 0 background, 1 foreground, 255 ignored."""


class TrueMasks:
    """The true masks, for the oracle."""

    def load(self, dataset: Dataset, ref: Ref, expression: Expression) -> NDArray[np.uint8]:
        """Return the ref's true mask, 255 where the data set ignores pixels."""
        label = dataset.load_mask(ref).astype(np.uint8)
        ignored = dataset.load_ignored(ref)
        if ignored is not None:
            label[ignored] = IGNORE
        return label


@dataclass(frozen=True)
class RefLabels:
    """A folder of <ref_id>.png: one target for all sentences of a ref."""

    folder: Path

    def load(self, dataset: Dataset, ref: Ref, expression: Expression) -> NDArray[np.uint8]:
        """Return the ref's label."""
        return load_label(label_path(self.folder, ref.ref_id))


@dataclass(frozen=True)
class SentenceLabels:
    """A folder of <sent_id>.png: each sentence has a target of its own."""

    folder: Path

    def load(self, dataset: Dataset, ref: Ref, expression: Expression) -> NDArray[np.uint8]:
        """Return the sentence's label."""
        return load_label(label_path(self.folder, expression.sent_id))


class RefBatches:
    """The batches of a plan over some epochs, for `train`: images as squares of input_size, targets where given.

    Raises RisError for a data set without refs.
    """

    cache: ImageCache | None = None  # where the images are read from; None: from their files

    def __init__(self, plan: Plan, epochs: int, input_size: int, targets: Targets | None = None) -> None:
        if not plan.dataset.refs:
            raise RisError(f"{plan.dataset.name} has no refs in split {plan.dataset.split!r}: nothing to train on")
        self.plan, self.input_size, self.targets = plan, input_size, targets
        self.n_steps, self.steps_per_epoch = epochs * plan.n_steps, plan.n_steps
        self._epoch: tuple[int, list[list[int]]] | None = None

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        return self.read(self.outline(step))

    def outline(self, step: int) -> Outline:
        """Return what a step sees: the draws, and a data set of their refs alone, in that order."""
        draws, dataset = self._draws_of(step), self.plan.dataset
        refs = tuple(dataset.refs[draw.ref] for draw in draws)
        images = {ref.image_id: dataset.images[ref.image_id] for ref in refs}
        return draws, replace(dataset, images=images, refs=refs, absent=())

    def read(self, outline: Outline) -> Batch:
        """Return the batch that is outlined."""
        draws, dataset = outline
        refs = dataset.refs
        is_mirrored = {ref.image_id: draw.is_mirrored for ref, draw in zip(refs, draws, strict=True)}
        row = {image_id: k for k, image_id in enumerate(is_mirrored)}
        pixels = torch.stack([self._read(dataset.images[i], mirrored) for i, mirrored in is_mirrored.items()])
        targets = None
        if self.targets is not None:
            hw = (self.input_size, self.input_size)
            loaded = [self.targets.load(dataset, ref, draw.expression) for ref, draw in zip(refs, draws, strict=True)]
            shown = [label[:, ::-1] if draw.is_mirrored else label for label, draw in zip(loaded, draws, strict=True)]
            targets = torch.from_numpy(np.concatenate([resize_labels(label[None], hw) for label in shown]))
        return Batch(pixels, torch.tensor([row[ref.image_id] for ref in refs]), draws, targets, tuple(row))

    def describe(self, step: int) -> str:
        """Return the refs of a step, and what to lower where their loss is not finite."""
        ref_ids = [self.plan.dataset.refs[draw.ref].ref_id for draw in self._draws_of(step)]
        return f"refs of the batch: {ref_ids}; lower lr"

    def _read(self, image: Image, mirrored: bool) -> Tensor:
        if self.cache is not None:
            pixels = self.cache.read(image.image_id)
        else:
            pixels = to_pixels(load_image(image), self.input_size)
        return pixels.flip(-1) if mirrored else pixels

    def _draws_of(self, step: int) -> list[Draw]:
        epoch, i = divmod(step, self.plan.n_steps)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self.plan.order_epoch(epoch))
        return [self.plan.draw(ref, epoch) for ref in self._epoch[1][i]]
