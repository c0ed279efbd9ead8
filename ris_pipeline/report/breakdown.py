"""Scores by what makes a sentence hard: its length, its place words, the object's size, objects of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.report.samples import Traits, traits_of
from ris_pipeline.scoring.metrics import Estimate, Outcome, summarise
from ris_pipeline.scoring.rows import find_row


@dataclass(frozen=True, slots=True)
class Group:
    """A part of a split, and how each row of the score table does on it: {row: {metric: estimate}}."""

    name: str
    n_sentences: int
    scores: Mapping[str, Mapping[str, Estimate]]


# {heading: (what decides, {group: its largest value of that})}
GROUPINGS: dict[str, tuple[Callable[[Traits], float | None], dict[str, float]]] = {
    "Sentence length": (
        lambda traits: traits.n_words,
        {"1–3 words": 3, "4–6 words": 6, "7–9 words": 9, "10 words or more": inf},
    ),
    "Place words": (lambda traits: traits.has_place, {"without place words": 0, "with place words": 1}),
    "Target size (box, share of the image)": (
        lambda traits: traits.box_share,
        {"up to 5 %": 0.05, "5–15 %": 0.15, "15–30 %": 0.3, "over 30 %": inf},
    ),
    "Objects of the same kind": (
        lambda traits: traits.n_same_kind,
        {"1 of its kind": 1, "2 of its kind": 2, "3 of its kind": 3, "4 or more": inf},
    ),
}


def find_group(heading: str, traits: Traits) -> str | None:
    """Return the group of a sentence below a heading of GROUPINGS, None where what decides is not known."""
    value_of, groups = GROUPINGS[heading]
    value = value_of(traits)
    return None if value is None else next(name for name, largest in groups.items() if value <= largest)


def break_down(
    dataset: Dataset, outcomes: Mapping[str, Sequence[Outcome]], n_bootstrap: int, seed: int
) -> dict[str, list[Group]]:
    """Return {heading of GROUPINGS: its groups that hold a sentence}, of the outcomes of each row on this split.

    A row with one outcome per ref counts as the answer to each of the ref's sentences. Yardsticks, which have no column
    in the gallery, are left out, and so is a heading with one group only: it compares nothing.
    """
    by_sentence = {row: _spread(dataset, own) for row, own in outcomes.items() if own and find_row(row).tile}
    if not by_sentence:
        return {}
    traits = {e.sent_id: traits_of(dataset, ref, e) for ref in dataset.refs for e in ref.expressions}
    tables = {}
    for heading, (_, names) in GROUPINGS.items():
        group_of = {sent_id: find_group(heading, own) for sent_id, own in traits.items()}
        groups = []
        for name in names:
            members = {sent_id for sent_id, group in group_of.items() if group == name}
            if members:
                scores = {
                    row: summarise(own, n_bootstrap, seed)
                    for row, all_of_row in by_sentence.items()
                    if (own := [outcome for outcome in all_of_row if outcome.sent_id in members])
                }
                groups.append(Group(name, len(members), scores))
        if len(groups) > 1:
            tables[heading] = groups
    return tables


def _spread(dataset: Dataset, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return an outcome per sentence: one that stands for all of a ref's sentences is repeated for each."""
    sentences = {ref.ref_id: [e.sent_id for e in ref.expressions] for ref in dataset.refs}
    spread = []
    for outcome in outcomes:
        if outcome.weight == 1:
            spread.append(outcome)
        else:
            spread += [replace(outcome, sent_id=sent_id, weight=1) for sent_id in sentences.get(outcome.ref_id, [])]
    return spread
