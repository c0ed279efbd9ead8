"""Who may take pixels from whom in an image; all cases by hand, on a row of cells."""

import numpy as np
import torch

from ris_pipeline.datasets.records import group_by_image
from ris_pipeline.maps.compete import DrawnSentences, find_drawn_rivals, find_rivals, let_compete, separate_masks
from tiny import make_noise


def compete(sentences, *rows):
    """The maps after the competition, one row of cells for each."""
    maps = np.array(rows, np.float32)[:, None]
    return let_compete(maps, maps, find_rivals(maps, [[text] for text in sentences]))[:, 0].tolist()


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


def test_of_things_within_each_other_each_keeps_what_is_within_it():
    """The button's map is high at itself alone, the coat's at the button as well, the man's at all three."""
    man, coat, button = [8, 7.5, 7.5, 1], [5, 8, 7.5, 0], [1, 4, 8, 0]
    assert compete(["man", "his coat", "its button"], man, coat, button) == [man, [0, 8, 7.5, 0], [0, 0, 8, 0]]


def test_a_part_takes_what_the_map_of_the_whole_is_low_at():
    """What no map can tell: this hat is cut out of the man."""
    assert compete(["the man", "his hat"], [4, 7, 8], [8, 4, 1]) == [[0, 7, 8], [8, 0, 0]]


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


def test_a_mask_loses_what_another_sentence_of_the_image_takes():
    """The second sentence means the object of the first and takes nothing from it; the third has no mask itself."""
    maps = np.array([[8, 4, 3, 0], [8, 7.5, 1, 0], [0, 2, 5, 8]], np.float32)[:, None]
    masks = maps > np.array([2, 2, 9])[:, None, None]
    assert separate_masks(masks, maps, ["red cup", "cup", "plate"])[:, 0].astype(int).tolist() == [
        [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0],
    ]  # fmt: skip
    assert separate_masks(masks[:1], maps[:1], ["red cup"]).tolist() == masks[:1].tolist()


def test_drawn_sentences_take_what_is_elsewhere():
    own = np.array([[[8, 4, 3, 2]]], np.float32)
    elsewhere, synonym, nearly, silent = [0, 0, 1, 4], [6, 3, 0, 0], [3, 0, 0, 5], [0, 0, 0, 0]
    drawn = np.array([elsewhere, synonym, nearly, silent], np.float32)[:, None]
    rivals = find_drawn_rivals(own, drawn)
    # the third is high at both; where nothing responds, the first cell counts as the peak
    assert rivals.tolist() == [[True, False, False, False]]
    assert let_compete(own, drawn, rivals).tolist() == [[[8, 4, 3, 0]]]


def test_a_drawn_sentence_about_a_part_or_a_member_takes_nothing():
    man, both_men = [6, 8, 6, 0], [8, 1, 7, 0]
    hat, left_man = [8, 2, 0, 0], [0, 1, 8, 1]
    own, drawn = (np.array(rows, np.float32)[:, None] for rows in ([man, both_men], [hat, left_man]))
    rivals = find_drawn_rivals(own, drawn)
    assert rivals.tolist() == [[False, False], [False, False]]
    assert let_compete(own, drawn, rivals).tolist() == own.tolist()


class Parrot:
    """Answers each sentence with its number of letters, and remembers what it has read."""

    input_size, device = 4, torch.device("cpu")

    def __init__(self):
        self.read = []

    def encode_images(self, pixels):
        return list(pixels)

    def encode_texts(self, sentences):
        self.read.append(sentences)
        return torch.tensor([float(len(sentence)) for sentence in sentences])

    def respond(self, image, texts, ref_ids=None):
        return texts[:, None, None].expand(-1, 2, 2)


def test_drawn_sentences_are_of_other_images_and_encoded_once(tmp_path):
    dataset, parrot = make_noise(tmp_path), Parrot()
    drawn = DrawnSentences(dataset, parrot, 100, seed=0)
    assert len(drawn.sentences) == len(set(drawn.sentences)) == 12
    for group in group_by_image(dataset):
        expected = [len(sentence) for sentence in drawn.sentences if not sentence.endswith(f"of {group.image_id}")]
        assert len(expected) == 8
        assert drawn.respond(group)[:, 0, 0].tolist() == expected
    assert parrot.read == [drawn.sentences]


def test_as_many_sentences_are_drawn_as_asked_for_by_seed_alone(tmp_path):
    dataset = make_noise(tmp_path)
    draws = [DrawnSentences(dataset, Parrot(), 5, seed=seed).sentences for seed in (0, 0, 1)]
    assert len(draws[0]) == 5
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
