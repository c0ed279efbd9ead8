import pytest

from ris_pipeline.report.breakdown import break_down, find_group
from ris_pipeline.report.samples import Traits


@pytest.mark.parametrize(
    ("heading", "traits", "name"),
    [
        ("Sentence length", Traits(3, False, None, None), "1–3 words"),
        ("Sentence length", Traits(4, False, None, None), "4–6 words"),
        ("Sentence length", Traits(9, False, None, None), "7–9 words"),
        ("Sentence length", Traits(10, False, None, None), "10 words or more"),
        ("Place words", Traits(1, True, None, None), "with place words"),
        ("Target size (box, share of the image)", Traits(1, True, 0.05, None), "up to 5 %"),
        ("Target size (box, share of the image)", Traits(1, True, 0.31, None), "over 30 %"),
        ("Target size (box, share of the image)", Traits(1, True, None, None), None),
        ("Objects of the same kind", Traits(1, True, None, 1), "1 of its kind"),
        ("Objects of the same kind", Traits(1, True, None, 7), "4 or more"),
        ("Objects of the same kind", Traits(1, True, None, None), None),
    ],
)
def test_the_group_of_a_sentence(heading, traits, name):
    assert find_group(heading, traits) == name


def test_each_group_is_scored_on_its_own_sentences(dataset, outcome):
    step1 = [outcome(10, 100, 80), outcome(10, 101, 20), outcome(11, 110, 40), outcome(12, 120, 60)]
    tables = break_down(dataset, {"step1": step1}, 20, 0)
    place = {group.name: group for group in tables["Place words"]}
    assert place["without place words"].scores["step1"]["miou"].value == pytest.approx(70)  # "dog", "cat"
    assert place["with place words"].scores["step1"]["miou"].value == pytest.approx(30)
    assert place["with place words"].n_sentences == 2
    # Without a box there is no size: ref 12 is in no group.
    assert sum(group.n_sentences for group in tables["Target size (box, share of the image)"]) == 3


def test_a_map_per_ref_answers_each_of_its_sentences(dataset, outcome):
    prms = [outcome(10, 100, 80, weight=2), outcome(11, 110, 40), outcome(12, 120, 60)]
    place = {group.name: group for group in break_down(dataset, {"prms": prms}, 20, 0)["Place words"]}
    assert place["with place words"].scores["prms"]["miou"].value == pytest.approx(60)  # 80 for "… left", and 40


def test_what_compares_nothing_is_left_out(dataset, outcome):
    tables = break_down(dataset, {"step1": [outcome(10, 100, 80)]}, 20, 0)
    assert "Place words" in tables
    one_ref = type(dataset)("toy", "val", dataset.images, dataset.refs[2:])
    assert break_down(one_ref, {"step1": [outcome(12, 120, 80)]}, 20, 0) == {}
