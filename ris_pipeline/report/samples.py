"""Which sentences a report shows, and what of them may decide how hard they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ris_pipeline.datasets.records import Dataset, Expression, Ref
from ris_pipeline.scoring.metrics import Outcome, box_area

# Words that say where something is, in the manner of RefCOCO's and ReferIt's sentences.
PLACE_WORDS = frozenset(
    (
        *("left", "leftmost", "right", "rightmost", "top", "bottom", "upper", "lower", "middle", "mid", "center"),
        *("centre", "corner", "side", "edge", "front", "back", "behind", "rear", "above", "below", "over", "under"),
        *("beneath", "near", "nearest", "close", "closest", "next", "beside", "between", "far", "farthest"),
        *("furthest", "background", "foreground", "first", "second", "third", "last"),
    )
)
DRAWN = ("random", "best", "worst", "changed")
_EXTREMES_SHARE = 6  # one part in six each for the best, the worst and the most changed; half is random


@dataclass(frozen=True, slots=True)
class Sample:
    """One sentence of a split, and how it came into the report: a value of DRAWN."""

    split: str
    ref: Ref
    expression: Expression
    drawn: str


@dataclass(frozen=True, slots=True)
class Traits:
    """What of a sentence and its object may decide how hard it is."""

    n_words: int
    has_place: bool  # holds one of PLACE_WORDS
    box_share: float | None  # of the image that the box covers, 0..1; None without a box or the image's size
    n_same_kind: int | None  # as Ref has it


def traits_of(dataset: Dataset, ref: Ref, expression: Expression) -> Traits:
    """The traits of one sentence of a ref; no file is opened."""
    words = re.findall(r"[\w'’-]+", expression.sentence.casefold())
    hw = dataset.images[ref.image_id].hw
    share = box_area(ref.box_xyxy) / (hw[0] * hw[1]) if ref.box_xyxy and hw else None
    return Traits(len(words), not PLACE_WORDS.isdisjoint(words), share, ref.n_same_kind)


def quality_of(outcome: Outcome) -> float | None:
    """How good an outcome is, 0..1: its IoU, that of the boxes where there is no mask, None without either."""
    return outcome.box_iou if outcome.iou is None else outcome.iou


def compute_changes(before: Sequence[Outcome], after: Sequence[Outcome]) -> dict[int, float]:
    """{sent_id: quality after − quality before, −1..1} of the sentences that both have."""
    qualities = {outcome.sent_id: quality_of(outcome) for outcome in before}
    changes = {}
    for outcome in after:
        old, new = qualities.get(outcome.sent_id), quality_of(outcome)
        if old is not None and new is not None:
            changes[outcome.sent_id] = new - old
    return changes


def choose_samples(
    dataset: Dataset, n: int, seed: int, outcomes: Sequence[Outcome] = (), changes: Mapping[int, float] | None = None
) -> list[Sample]:
    """At most n sentences of different refs: a sixth each of the best, worst and most changed, the others random.

    `outcomes` say which are best and worst, `changes` {sent_id: change} which changed most; without them all are
    random. The same arguments give the same samples.
    """
    qualities = {one.sent_id: quality for one in outcomes if (quality := quality_of(one)) is not None}
    # sent_id decides between equals, so that the order of the outcomes does not.
    ranked = {
        "best": sorted(qualities, key=lambda one: (-qualities[one], one)),
        "worst": sorted(qualities, key=lambda one: (qualities[one], one)),
        "changed": sorted(changes or {}, key=lambda one: (-abs((changes or {})[one]), one)),
    }
    places = {e.sent_id: (ref, e) for ref in dataset.refs for e in ref.expressions}
    taken: set[int] = set()
    chosen = []
    for drawn, sent_ids in ranked.items():
        known = (places[one] for one in sent_ids if one in places)
        chosen += _take(dataset.split, drawn, known, n // _EXTREMES_SHARE, taken)
    at_random = _take(dataset.split, "random", _shuffle(dataset, seed), n - len(chosen), taken)
    return [*at_random, *chosen]


def _shuffle(dataset: Dataset, seed: int) -> Iterator[tuple[Ref, Expression]]:
    """Every ref once in random order, each with one of its sentences."""
    rng = np.random.default_rng([seed, len(dataset.refs)])
    for i in rng.permutation(len(dataset.refs)):
        ref = dataset.refs[i]
        yield ref, ref.expressions[rng.integers(len(ref.expressions))]


def _take(
    split: str, drawn: str, candidates: Iterable[tuple[Ref, Expression]], n: int, taken: set[int]
) -> list[Sample]:
    """The first n candidates of refs not taken yet, which they are from now on."""
    samples: list[Sample] = []
    for ref, expression in candidates:
        if len(samples) == n:
            break
        if ref.ref_id not in taken:
            taken.add(ref.ref_id)
            samples.append(Sample(split, ref, expression, drawn))
    return samples
