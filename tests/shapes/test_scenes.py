"""The sentences of generated scenes, read back by an independent reader (conftest.py)."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from ris_pipeline.shapes.render import COLOURS, SHAPES, TEXTURES, Thing
from ris_pipeline.shapes.scenes import VARIANTS, describe, has_room, sample_scene, sample_thing

N_SCENES = 200


def thing(shape="star", colour="red", cx=0.5, cy=0.5, size="small", texture="plain", side=0.25):
    return Thing(shape, colour, texture, size, cx, cy, side, 0.0)


@cache
def described_scenes(variant):
    """[(things, target, sentences)] of every object in N_SCENES scenes that can be told from the others."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(N_SCENES):
        things = sample_scene(rng)
        for target in range(len(things)):
            sentences = describe(things, target, variant, rng)
            if sentences is not None:
                found.append((things, target, sentences))
    return found


def test_the_reader_of_these_tests_by_hand(strict, generous):
    things = [thing(cx=0.2), thing("ring", "blue", cx=0.6), thing(colour="blue", cx=0.9, size="big")]
    assert strict.referents("star", things) == [0, 2]
    assert strict.referents("the little red star", things) == [0]
    assert strict.referents("large star", things) == [2]
    assert strict.referents("star on the right side", things) == [2]
    assert strict.referents("ring on the right", things) == []
    assert generous.referents("ring on the right", things) == [1]
    assert generous.referents("right ring", things) == [1]
    assert strict.referents("star to the left of the blue ring", things) == [0]
    assert strict.referents("star left of the star", things) == []  # which star?
    assert strict.referents("a star near the right that is right of the ring", things) == [2]
    assert strict.referents("a star near the left that is right of the ring", things) == []
    assert strict.referents("star at the upper left", [thing(cx=0.1, cy=0.1), thing(cx=0.1, cy=0.9)]) == [0]
    assert strict.is_true("red star and ring", things)
    assert not strict.is_true("red star and red star", things)
    assert strict.is_true("blue star right of the red star", things)
    assert not strict.is_true("red star right of the blue star", things)
    with pytest.raises(KeyError):
        strict.referents("shiny star", things)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_sentence_fits_its_object_and_no_other(variant, strict, generous):
    n = 0
    for things, target, sentences in described_scenes(variant):
        for sentence in sentences:
            assert strict.referents(sentence, things) == [target], (sentence, things)
            assert generous.referents(sentence, things) == [target], (sentence, things)
            n += 1
    assert n > 3 * N_SCENES  # more than one object a scene is told from the others


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_different_sentences_a_ref(variant):
    assert all(len(sentences) == len(set(sentences)) == 3 for _, _, sentences in described_scenes(variant))


def test_shapes_say_look_position_and_relation(strict):
    for _, _, sentences in described_scenes("shapes"):
        assert [strict.parse(sentence).kind for sentence in sentences] == ["attributes", "position", "relation"]


def test_shapes_plus_has_no_word_of_place():
    looks = {*SHAPES, *COLOURS, *TEXTURES, "spotted", "small", "little", "big", "large", "the"}
    said = {word for _, _, sentences in described_scenes("shapes+") for text in sentences for word in text.split()}
    assert said == looks


def test_shapesg_is_long_and_relational(strict):
    for _, _, sentences in described_scenes("shapesg"):
        for sentence in sentences:
            assert strict.parse(sentence).kind == "relation"
            assert re.match("(a|the) .* that is ", sentence)


@pytest.mark.parametrize("n_range", [(3, 6), (3, 4), (5, 6)])
def test_scenes_hold_several_of_one_shape(n_range):
    rng = np.random.default_rng(3)
    sizes = Counter()
    for _ in range(N_SCENES):
        things = sample_scene(rng, n_range)
        sizes[len(things)] += 1
        assert max(Counter(item.shape for item in things).values()) >= 2
    assert max(sizes) == n_range[1]
    assert sum(n for size, n in sizes.items() if size >= n_range[0]) > 0.9 * N_SCENES


def test_things_of_a_scene_look_different_and_stand_apart():
    rng = np.random.default_rng(4)
    for _ in range(N_SCENES):
        things = sample_scene(rng)
        looks = {(item.shape, item.colour, item.texture, item.size) for item in things}
        assert len(looks) == len(things)
        for i, a in enumerate(things):
            for b in things[:i]:  # centres nearer than this would have one hide the other
                assert np.hypot(a.cx - b.cx, a.cy - b.cy) > 0.4 * (a.side + b.side)


def test_has_room_by_hand():
    here = thing(cx=0.2, side=0.3)
    assert has_room(thing(colour="blue", cx=0.5, side=0.3), [here])  # 0.3 apart: they touch at most
    assert not has_room(thing(colour="blue", cx=0.4, side=0.3), [here])  # 0.2 apart
    assert not has_room(thing(cx=0.8, side=0.3), [here])  # far away, but its double
    assert has_room(thing(cx=0.8, size="big", side=0.45), [here])


@pytest.mark.parametrize("zoom", [1.0, 160 / 96])
def test_things_lie_inside_and_sizes_do_not_overlap(zoom):
    rng = np.random.default_rng(5)
    things = [sample_thing(rng, zoom=zoom) for _ in range(300)]
    for item in things:
        assert item.side / 2 <= item.cx <= 1 - item.side / 2
        assert item.side / 2 <= item.cy <= 1 - item.side / 2
    small = [item.side for item in things if item.size == "small"]
    big = [item.side for item in things if item.size == "big"]
    assert 1.3 * max(small) < min(big)


def test_an_object_like_no_words_can_tell_is_left_out():
    """Two doubles: describe gives up instead of saying what fits both."""
    things = [thing(cx=0.2), thing(cx=0.8)]
    assert describe(things, 0, "shapes+", np.random.default_rng(0)) is None


def test_nothing_is_said_of_a_place_people_would_argue_about():
    """At 0.45 of the width some say left: no sentence may rest on it, one way or the other."""
    things = [thing(cx=0.45, cy=0.1), thing(cx=0.9, cy=0.12), thing(cx=0.1, cy=0.9, shape="ring")]
    rng = np.random.default_rng(0)
    for _ in range(50):
        for target in (0, 1):
            for sentence in describe(things, target, "shapes", rng) or []:
                assert not re.search("left (star|red|small|little|plain)|on the left", sentence)
