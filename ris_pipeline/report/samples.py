"""Which sentences a report shows, and what of them may decide how hard they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ris_pipeline.datasets.records import Dataset, Expression, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.report.sources import Sources
from ris_pipeline.scoring.metrics import Outcome, box_area
from ris_pipeline.scoring.rows import ROWS, find_improvement

# Words that say where something is, in the manner of RefCOCO's and ReferIt's sentences.
PLACE_WORDS = frozenset(
    (
        *("left", "leftmost", "right", "rightmost", "top", "bottom", "upper", "lower", "middle", "mid", "center"),
        *("centre", "corner", "side", "edge", "front", "back", "behind", "rear", "above", "below", "over", "under"),
        *("beneath", "near", "nearest", "close", "closest", "next", "beside", "between", "far", "farthest"),
        *("furthest", "background", "foreground", "first", "second", "third", "last"),
    )
)
_EXTREMES_SHARE = 6  # one part in six each for the best, the worst and the most changed; half is random


@dataclass(frozen=True, slots=True)
class Sample:
    """One sentence of a split, and how it came into the report."""

    split: str
    ref: Ref
    expression: Expression
    drawn: str  # random, best, worst or changed


@dataclass(frozen=True, slots=True)
class Traits:
    """What of a sentence and its object may decide how hard it is."""

    n_words: int
    has_place: bool  # holds one of PLACE_WORDS
    box_share: float | None  # of the image that the box covers, 0..1; None without a box or the image's size
    n_same_kind: int | None  # as Ref has it


def traits_of(dataset: Dataset, ref: Ref, expression: Expression) -> Traits:
    """Return the traits of one sentence of a ref; no file is opened."""
    words = re.findall(r"[\w'’-]+", expression.sentence.casefold())
    hw = dataset.images[ref.image_id].hw
    share = box_area(ref.box_xyxy) / (hw[0] * hw[1]) if ref.box_xyxy and hw else None
    return Traits(len(words), not PLACE_WORDS.isdisjoint(words), share, ref.n_same_kind)


def quality_of(outcome: Outcome) -> float | None:
    """Return how good an outcome is, 0..1: its IoU, that of the boxes where there is no mask, None without either."""
    return outcome.box_iou if outcome.iou is None else outcome.iou


def compute_changes(before: Sequence[Outcome], after: Sequence[Outcome]) -> dict[int, float]:
    """Return {sent_id: quality after − quality before, −1..1} of the sentences that both have."""
    qualities = {outcome.sent_id: quality_of(outcome) for outcome in before}
    changes = {}
    for outcome in after:
        old, new = qualities.get(outcome.sent_id), quality_of(outcome)
        if old is not None and new is not None:
            changes[outcome.sent_id] = new - old
    return changes


def choose_samples(
    dataset: Dataset, n: int, seed: int, outcomes: Sequence[Outcome], changes: Mapping[int, float]
) -> list[Sample]:
    """Return at most n sentences of different refs: a sixth each of the best, worst and most changed, else random.

    `outcomes` say which are best and worst, `changes` {sent_id: change} which changed most; without them all are
    random. The same arguments give the same samples.
    """
    qualities = {outcome.sent_id: quality for outcome in outcomes if (quality := quality_of(outcome)) is not None}
    # sent_id decides between equals, so that the order of the outcomes does not.
    ranked = {
        "best": sorted(qualities, key=lambda sent_id: (-qualities[sent_id], sent_id)),
        "worst": sorted(qualities, key=lambda sent_id: (qualities[sent_id], sent_id)),
        "changed": sorted(changes, key=lambda sent_id: (-abs(changes[sent_id]), sent_id)),
    }
    places = {e.sent_id: (ref, e) for ref in dataset.refs for e in ref.expressions}
    taken: set[int] = set()
    chosen = []
    for drawn, sent_ids in ranked.items():
        known = (places[sent_id] for sent_id in sent_ids if sent_id in places)
        chosen += _take(dataset.split, drawn, known, n // _EXTREMES_SHARE, taken)
    at_random = _take(dataset.split, "random", _shuffle(dataset, seed), n - len(chosen), taken)
    return [*at_random, *chosen]


def draw_samples(sources: Sources, datasets: Mapping[str, Dataset], n: int, seed: int) -> list[Sample]:
    """Return n samples, equally many of each split that has responses; the first splits have what is left over.

    `datasets`: {split: data set}. The best and worst are by the last stage that was scored, the most changed by the
    first improvement that was.
    """
    splits = [split for split in sources.splits_with_maps if split in datasets]
    samples = []
    for k, split in enumerate(splits):
        outcomes = {row: of_row for row, of_row in sources.read_outcomes(split).items() if row in ROWS}
        judged = next((outcomes[row] for row in reversed(ROWS) if ROWS[row].tile and row in outcomes), [])
        # The map that PRMS chose is of another sentence than the label it became.
        improved = find_improvement([row for row in outcomes if ROWS[row].kind != "choice"])
        changes = compute_changes(*(outcomes[row] for row in improved)) if improved else {}
        own = n // len(splits) + (k < n % len(splits))
        samples += choose_samples(datasets[split], own, seed, judged, changes)
    return samples


def find_sample(datasets: Mapping[str, Dataset], ref_id: int) -> Sample:
    """Return the ref with its first sentence, from whichever split has it; RisError where none has."""
    for split, dataset in datasets.items():
        for ref in dataset.refs:
            if ref.ref_id == ref_id:
                return Sample(split, ref, ref.expressions[0], "random")
    known = [ref.ref_id for dataset in datasets.values() for ref in dataset.refs]
    nearest = min(known, key=lambda other: abs(other - ref_id))
    name = next(iter(datasets.values())).name
    raise RisError(f"--ref {ref_id}: {name} has no such ref in {', '.join(datasets)}; the nearest is {nearest}")


def _shuffle(dataset: Dataset, seed: int) -> Iterator[tuple[Ref, Expression]]:
    """Yield every ref once in random order, each with one of its sentences."""
    rng = np.random.default_rng([seed, len(dataset.refs)])
    for i in rng.permutation(len(dataset.refs)):
        ref = dataset.refs[i]
        yield ref, ref.expressions[rng.integers(len(ref.expressions))]


def _take(
    split: str, drawn: str, candidates: Iterable[tuple[Ref, Expression]], n: int, taken: set[int]
) -> list[Sample]:
    """Return the first n candidates of refs not taken yet, which they are from now on."""
    samples: list[Sample] = []
    for ref, expression in candidates:
        if len(samples) == n:
            break
        if ref.ref_id not in taken:
            taken.add(ref.ref_id)
            samples.append(Sample(split, ref, expression, drawn))
    return samples
