"""Scores by what makes a sentence hard: its length, its place words, the object's size, objects of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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


def name_length(traits: Traits) -> str:
    """Return the group of a sentence by its number of words."""
    n = traits.n_words
    return "1–3 words" if n <= 3 else "4–6 words" if n <= 6 else "7–9 words" if n <= 9 else "10 words or more"


def name_place(traits: Traits) -> str:
    """Return the group of a sentence by whether it says where the object is."""
    return "with place words" if traits.has_place else "without place words"


def name_size(traits: Traits) -> str | None:
    """Return the group of an object by the share of the image that its box covers."""
    share = traits.box_share
    if share is None:
        return None
    return "up to 5 %" if share <= 0.05 else "5–15 %" if share <= 0.15 else "15–30 %" if share <= 0.3 else "over 30 %"


def name_kind(traits: Traits) -> str | None:
    """Return the group of an object by how many of its kind the image has, itself counted."""
    n = traits.n_same_kind
    return None if n is None else "1 of its kind" if n == 1 else f"{n} of its kind" if n < 4 else "4 or more"


# {heading: (group of a sentence, all groups in order)}
GROUPINGS: dict[str, tuple[Callable[[Traits], str | None], tuple[str, ...]]] = {
    "Sentence length": (name_length, ("1–3 words", "4–6 words", "7–9 words", "10 words or more")),
    "Place words": (name_place, ("without place words", "with place words")),
    "Target size (box, share of the image)": (name_size, ("up to 5 %", "5–15 %", "15–30 %", "over 30 %")),
    "Objects of the same kind": (name_kind, ("1 of its kind", "2 of its kind", "3 of its kind", "4 or more")),
}


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
    for heading, (name_of, names) in GROUPINGS.items():
        group_of = {sent_id: name_of(own) for sent_id, own in traits.items()}
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
