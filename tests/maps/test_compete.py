"""Which refs of an image may take pixels from each other; all cases by hand, on a row of cells."""

import numpy as np

from ris_pipeline.datasets import Expression, Ref
from ris_pipeline.maps.compete import find_rivals, let_compete


def refs_of(*sentences):
    return [Ref(i, 0, "train", (Expression(i, text),)) for i, text in enumerate(sentences)]


def compete(sentences, *rows):
    """The maps after the competition, one row of cells for each."""
    maps = np.array(rows, np.float32)[:, None]
    return let_compete(maps, find_rivals(maps, refs_of(*sentences)))[:, 0].tolist()


def test_a_pixel_is_of_the_object_that_responds_most_relative_to_its_own_maximum():
    """In the third cell the first map has half of its maximum, the second a quarter, though the larger number."""
    kept = compete(["left cup", "right cup"], [4, 3, 2, 1, 0], [0, 0, 2.5, 8, 10])
    assert kept == [[4, 3, 2, 0, 0], [0, 0, 0, 8, 10]]


def test_of_three_objects_each_keeps_its_own():
    rows = [8, 4, 2, 1, 0], [2, 3, 8, 3, 2], [0, 1, 2, 6, 8]
    assert compete("abc", *rows) == [[8, 4, 0, 0, 0], [0, 0, 8, 0, 0], [0, 0, 0, 6, 8]]


def test_two_refs_of_one_annotation_lose_nothing():
    """Their peaks are elsewhere, but each is nearly as high at the other's."""
    rows = [0, 8, 7.75, 1], [0, 7.5, 8, 2]
    assert compete(["the dog", "brown animal"], *rows) == [list(row) for row in rows]


def test_refs_with_a_sentence_in_common_lose_nothing():
    rows = [8, 4, 1, 0], [0, 2, 4, 8]
    assert compete(["A  dog", "a dog"], *rows) == [list(row) for row in rows]
    assert compete(["a dog", "the dog"], *rows) == [[8, 4, 0, 0], [0, 0, 4, 8]]


def test_a_whole_keeps_its_part_and_the_part_is_not_the_whole():
    man, hat = [7.5, 8, 8, 7.5], [8, 4, 2, 1]
    assert compete(["the man", "his hat"], man, hat) == [man, [8, 0, 0, 0]]


def test_a_plural_keeps_each_of_its_members_and_each_member_is_only_itself():
    both, left, right = [7.5, 2, 8, 0], [8, 1, 4, 0], [1, 0, 8, 1]
    kept = compete(["the two men", "left man", "right man"], both, left, right)
    assert kept[0] == both
    assert kept[1] == [8, 0, 0, 0]
    assert kept[2] == [0, 0, 8, 1]


def test_an_object_without_response_neither_takes_nor_gets():
    assert compete("ab", [0, 0, 0], [1, 2, 0]) == [[0, 0, 0], [1, 2, 0]]


def test_a_single_object_competes_with_nobody():
    assert compete("a", [1, 2, 0]) == [[1, 2, 0]]
