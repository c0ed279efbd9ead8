"""Captions read back by an independent reader (conftest.py) against the things that were drawn."""

from collections import Counter
from dataclasses import fields, replace
from itertools import islice

import numpy as np
import pytest

from ris_pipeline.shapes import captions
from ris_pipeline.shapes.captions import Claim, Pair, generate_pairs, vocabulary
from ris_pipeline.shapes.render import Thing, render
from ris_pipeline.shapes.scenes import VARIANTS, describe, sample_scene

STAR = Thing("star", "red", "plain", "small", cx=0.2, cy=0.5, side=0.3, angle=0.0)
RING = Thing("ring", "blue", "dotted", "small", cx=0.8, cy=0.5, side=0.3, angle=0.0)


@pytest.fixture
def drawn(monkeypatch):
    """The things of every picture that is drawn, in order."""
    scenes = []

    def record(things, background):
        scenes.append(list(things))
        return render(things, background)

    monkeypatch.setattr(captions, "render", record)
    return scenes


def look(thing):
    return thing.shape, thing.colour, thing.texture, thing.size


@pytest.mark.parametrize(
    ("side", "n_range", "with_siblings"), [(96, (1, 2), False), (160, (1, 5), True), (160, (3, 5), True)]
)
def test_captions_and_their_siblings_are_true_of_their_pictures(drawn, strict, side, n_range, with_siblings):
    pairs = list(islice(generate_pairs(np.random.default_rng(11), side, n_range, with_siblings), 300))
    for pair, things in zip(pairs, drawn, strict=True):
        assert strict.is_true(pair.caption, things), (pair.caption, things)


def test_a_sibling_differs_in_one_respect_that_the_captions_tell(drawn, strict):
    pairs = list(islice(generate_pairs(np.random.default_rng(12), 160, (2, 4), with_siblings=True), 400))
    changes = Counter()
    for i in range(len(pairs) - 1):
        first, second = drawn[i], drawn[i + 1]
        if [thing.colour_shift for thing in first] != [thing.colour_shift for thing in second]:
            continue  # another scene: the shifts are drawn thing by thing
        moved = any((a.cx, a.cy) != (b.cx, b.cy) for a, b in zip(first, second, strict=True))
        recoloured = any(look(a) != look(b) for a, b in zip(first, second, strict=True))
        assert moved != recoloured
        assert not strict.is_true(pairs[i].caption, second), (pairs[i].caption, second)
        assert not strict.is_true(pairs[i + 1].caption, first), (pairs[i + 1].caption, first)
        changes["moved" if moved else "recoloured"] += 1
    assert changes["moved"] > 60
    assert changes["recoloured"] > 40


@pytest.mark.parametrize(
    ("claim", "is_false"),
    [
        (Claim(((STAR, ("colour",)),)), False),  # the star itself
        (Claim(((RING, ("texture",)),)), True),  # there is no dotted ring
        (Claim(((RING, ()),)), False),  # but a ring
        (Claim(((STAR, ()),), place="left"), False),
        (Claim(((STAR, ()),), place="right"), True),
        (Claim(((STAR, ()), (RING, ())), relation="left"), False),
        (Claim(((STAR, ()), (RING, ())), relation="right"), True),
        (Claim(((RING, ()), (STAR, ())), relation="left"), True),
    ],
)
def test_what_is_clearly_false_of_a_star_left_of_a_ring(claim, is_false):
    assert claim.is_clearly_false_of([STAR, replace(RING, texture="plain")]) is is_false


def test_no_siblings_unless_asked(drawn):
    list(islice(generate_pairs(np.random.default_rng(0), 96, (2, 2), with_siblings=False), 20))
    centres = [tuple((thing.cx, thing.cy) for thing in things) for things in drawn]
    assert len(set(centres)) == 20


def test_a_pair_says_nothing_of_where_the_object_is():
    assert [field.name for field in fields(Pair)] == ["picture", "caption"]


def test_pictures_are_as_large_as_asked_and_seeded():
    first, again = (list(islice(generate_pairs(np.random.default_rng(3), 96, (1, 2), True), 6)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert a.picture.shape == (96, 96, 3)
        assert a.picture.dtype == np.uint8
        np.testing.assert_array_equal(a.picture, b.picture)
        assert a.caption == b.caption


def test_things_keep_their_size_in_pixels(drawn):
    list(islice(generate_pairs(np.random.default_rng(4), 96, (1, 2), False), 100))
    list(islice(generate_pairs(np.random.default_rng(4), 160, (1, 2), False), 100))
    for size, low, high in (("small", 0.24, 0.31), ("big", 0.42, 0.52)):  # of 160 pixels
        for scenes, side in ((drawn[:100], 96), (drawn[100:], 160)):
            diameters = [thing.side * side for things in scenes for thing in things if thing.size == size]
            assert 160 * low - 1e-6 <= min(diameters) <= max(diameters) <= 160 * high + 1e-6


def test_vocabulary_holds_every_word_of_captions_and_sentences():
    words = set(vocabulary())
    assert len(words) == len(vocabulary())
    rng = np.random.default_rng(5)
    texts = [pair.caption for pair in islice(generate_pairs(rng, 96, (1, 2), True), 200)]
    for variant in VARIANTS:
        for _ in range(40):
            texts += describe(sample_scene(rng), 0, variant, rng) or []
    assert {word for text in texts for word in text.split()} <= words
