import dataclasses

import pytest

from ris_pipeline.datasets.records import Dataset, Expression, Image, Ref
from ris_pipeline.report.samples import choose_samples, compute_changes, quality_of, traits_of


@pytest.mark.parametrize(
    ("ref", "expression", "n_words", "has_place", "share", "n_same_kind"),
    [
        (0, 0, 1, False, 0.05, 2),  # "dog", a box of 20 by 50 pixels in an image of 100 by 200
        (0, 1, 5, True, 0.05, 2),  # … on the left
        (1, 0, 10, True, 0.5, 2),  # … behind …
        (2, 0, 1, False, None, 1),  # no box
    ],
)
def test_traits(dataset, ref, expression, n_words, has_place, share, n_same_kind):
    chosen = dataset.refs[ref]
    traits = traits_of(dataset, chosen, chosen.expressions[expression])
    assert (traits.n_words, traits.has_place, traits.n_same_kind) == (n_words, has_place, n_same_kind)
    assert traits.box_share == share


def test_a_place_word_inside_of_another_word_is_none(dataset):
    ref = dataset.refs[0]
    assert not traits_of(dataset, ref, Expression(1, "leftover stopper")).has_place
    assert traits_of(dataset, ref, Expression(1, "LEFT, please")).has_place


def test_quality_is_the_iou_or_else_that_of_the_boxes(outcome):
    assert quality_of(outcome(1, 1, 40)) == 0.4
    assert quality_of(dataclasses.replace(outcome(1, 1, 40), intersection=None, union=None)) == 0.25


def test_changes_are_of_sentences_that_both_have(outcome):
    before = [outcome(1, 1, 40), outcome(2, 2, 50)]
    after = [outcome(2, 2, 20), outcome(3, 3, 90)]
    assert compute_changes(before, after) == {2: pytest.approx(-0.3)}


@pytest.fixture
def many() -> Dataset:
    """60 refs of two sentences each, 10k and 10k + 1."""
    refs = [Ref(k, 0, "val", (Expression(10 * k, "a"), Expression(10 * k + 1, "b"))) for k in range(60)]
    return Dataset("toy", "val", {0: Image(0, None, (4, 4))}, tuple(refs))


def test_a_sixth_each_are_the_best_the_worst_and_the_most_changed(many, outcome):
    outcomes = [outcome(k, 10 * k, k) for k in range(60)]
    changes = {10 * k: -0.5 if k in (7, 8) else 0.01 for k in range(60)}
    samples = choose_samples(many, 12, 0, outcomes, changes)
    chosen = {drawn: {s.ref.ref_id for s in samples if s.drawn == drawn} for drawn in ("best", "worst", "changed")}
    assert chosen == {"best": {58, 59}, "worst": {0, 1}, "changed": {7, 8}}
    assert sum(s.drawn == "random" for s in samples) == 6
    assert len({s.ref.ref_id for s in samples}) == 12


def test_the_worst_sentence_of_a_ref_is_the_one_that_is_shown(many, outcome):
    outcomes = [outcome(k, 10 * k + 1, 95) for k in range(1, 60)] + [outcome(0, 0, 90), outcome(0, 1, 0)]
    (worst,) = [s for s in choose_samples(many, 6, 0, outcomes, {}) if s.drawn == "worst"]
    assert worst.expression.sent_id == 1


def test_the_seed_decides_and_nothing_else(many, outcome):
    outcomes = [outcome(k, 10 * k, k) for k in range(60)]
    first = choose_samples(many, 12, 0, outcomes, {})
    assert choose_samples(many, 12, 0, outcomes[::-1], {}) == first
    assert choose_samples(many, 12, 1, outcomes, {}) != first


def test_no_more_than_there_are(dataset):
    assert sorted(s.ref.ref_id for s in choose_samples(dataset, 200, 0, [], {})) == [10, 11, 12]
    assert choose_samples(dataset, 0, 0, [], {}) == []
