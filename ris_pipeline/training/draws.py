"""Which refs and sentences a training step sees: a pure function of seed and step, so that any step can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ris_pipeline.datasets.records import Dataset, Expression, Ref
from ris_pipeline.maps.mirror import swap_sides
from ris_pipeline.process.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Draw:
    """One ref in a batch: its place in `Dataset.refs`, one sentence of it, sentences of other refs."""

    ref: int
    expression: Expression
    negatives: tuple[str, ...]
    is_mirrored: bool = False  # its image, in which left is right

    @property
    def sentence(self) -> str:
        """The drawn sentence, as it is said of the image that is shown."""
        return swap_sides(self.expression.sentence) if self.is_mirrored else self.expression.sentence


@dataclass(frozen=True, slots=True)
class Plan:
    """The batches of one data set: n_steps of them an epoch, an epoch visits each ref once (TRIS)."""

    dataset: Dataset
    batch_size: int  # refs, of all ranks together
    refs_per_image: int  # refs of one image that stand in one batch together, at most
    n_negatives: int
    seed: int
    ranks: Ranks = ALONE
    distinct_images: bool = False  # no two refs of one image in one batch; refs_per_image has to be 1
    mirror: bool = False  # show half of an epoch's images mirrored; for plans without negatives

    @property
    def n_steps(self) -> int:
        """Steps of an epoch; what is left of the refs after the last whole batch waits for the next order."""
        return max(len(self.dataset.refs) // self.batch_size, 1)

    def order_epoch(self, epoch: int) -> list[list[int]]:
        """Return this rank's part of the epoch's batches, as places in `Dataset.refs`; alone, batch_size refs each.

        The batches are the same for any number of ranks. With refs_per_image > 1 the refs of an image keep together, so
        that one encoding serves them all. With distinct_images an image of more refs than there are batches leaves some
        out, and batches may be smaller. Raises RisError for a batch of fewer refs than ranks.
        """
        rng = np.random.default_rng([self.seed, epoch])
        size = self.batch_size
        groups = _shuffle_groups(self.dataset, self.refs_per_image, rng)
        if self.distinct_images:
            batches = _deal(self.dataset, [ref for (ref,) in groups], self.n_steps, size, rng)
        else:
            order = [ref for group in groups for ref in group]
            batches = [order[i * size : (i + 1) * size] for i in range(self.n_steps)]
        return [self._share(batch) for batch in batches]

    def _share(self, batch: list[int]) -> list[int]:
        """Return this rank's part of a batch: whole images, where there are as many as ranks."""
        if self.ranks.n_ranks == 1:
            return batch
        of_image: dict[int, list[int]] = {}
        for ref in batch:
            of_image.setdefault(self.dataset.refs[ref].image_id, []).append(ref)
        parts = list(of_image.values()) if len(of_image) >= self.ranks.n_ranks else [[ref] for ref in batch]
        return [ref for part in self.ranks.part_of(parts) for ref in part]

    def draw(self, index: int, epoch: int) -> Draw:
        """Return what the epoch sees of the ref at that place: one of its sentences, and sentences of others."""
        rng = np.random.default_rng([self.seed, epoch, index])
        ref = self.dataset.refs[index]
        expression = ref.expressions[rng.integers(len(ref.expressions))]
        others = self.dataset.siblings(ref) or self._strangers(ref, rng)
        negatives = tuple(_any_sentence(others, rng) for _ in range(self.n_negatives)) if others else ()
        if expression.sentence in negatives:
            # Differs from TRIS: also of siblings; there only strangers' sentences are drawn again.
            negatives = self._without(expression.sentence, negatives, [*others, *self._strangers(ref, rng)])
        return Draw(index, expression, negatives, self.mirror and self._is_mirrored(ref.image_id, epoch))

    def _is_mirrored(self, image_id: int, epoch: int) -> bool:
        """Return whether an epoch shows the image mirrored: the same for all its refs, which share its encoding."""
        return bool(np.random.default_rng([self.seed, epoch, image_id, 0]).random() < 0.5)

    def _without(self, sentence: str, negatives: tuple[str, ...], refs: Sequence[Ref]) -> tuple[str, ...]:
        """Return the negatives with another sentence of `refs` in place of the own; without it where there is none."""
        others = [e.sentence for ref in refs for e in ref.expressions if e.sentence != sentence]
        return tuple(
            text if text != sentence else others[k % len(others)]
            for k, text in enumerate(negatives)
            if text != sentence or others
        )

    def _strangers(self, ref: Ref, rng: np.random.Generator) -> list[Ref]:
        """Return refs of other images, for a ref that is alone in its own."""
        picks = (self.dataset.refs[rng.integers(len(self.dataset.refs))] for _ in range(8 * self.n_negatives))
        return [other for other in picks if other.image_id != ref.image_id][: self.n_negatives]


def _any_sentence(refs: Sequence[Ref], rng: np.random.Generator) -> str:
    expressions = refs[int(rng.integers(len(refs)))].expressions
    return expressions[int(rng.integers(len(expressions)))].sentence


def _shuffle_groups(dataset: Dataset, size: int, rng: np.random.Generator) -> list[list[int]]:
    """Return all refs in random order, in groups of up to size refs of one image."""
    if size == 1:
        return [[int(i)] for i in rng.permutation(len(dataset.refs))]
    by_image: dict[int, list[int]] = {}
    for i in rng.permutation(len(dataset.refs)):
        by_image.setdefault(dataset.refs[i].image_id, []).append(int(i))
    groups = [refs[k : k + size] for refs in by_image.values() for k in range(0, len(refs), size)]
    return [groups[i] for i in rng.permutation(len(groups))]


def _deal(dataset: Dataset, order: list[int], n_batches: int, size: int, rng: np.random.Generator) -> list[list[int]]:
    """Return the refs dealt to the batches like cards, image by image, so that those of one image come apart."""
    by_image: dict[int, list[int]] = {}
    n_left = n_batches * size
    for ref in order:
        refs = by_image.setdefault(dataset.refs[ref].image_id, [])
        if n_left and len(refs) < n_batches:
            refs.append(ref)
            n_left -= 1
    cards = [ref for refs in by_image.values() for ref in refs]
    return [cards[i::n_batches] for i in rng.permutation(n_batches)]
