"""An image and its mirror image, by a responder whose answers can be told by hand."""

import pytest
import torch

from ris_pipeline.maps.mirror import Mirrored, swap_sides
from ris_pipeline.maps.rule import SEGMENTATION


@pytest.mark.parametrize(
    ("sentence", "swapped"),
    [
        ("the cup left of the plate, right", "the cup right of the plate, left"),
        ("LEFT man", "RIGHT man"),
        ("Rightmost, righthand, right-hand, leftside", "Leftmost, lefthand, left-hand, rightside"),
        ("the man's left's", "the man's right's"),
        ("bright copyright leftovers", "bright copyright leftovers"),
        ("", ""),
    ],
)
def test_left_and_right_are_swapped_as_words(sentence, swapped):
    assert swap_sides(sentence) == swapped
    assert swap_sides(swapped) == sentence


class Sided:
    """Scores the red channel where a sentence says "left", its negative where it says "right"."""

    input_size, grid_hw, rule, device = 2, (2, 2), SEGMENTATION, torch.device("cpu")
    n_tokens, latin_only = 9, True

    def find_cut(self, sentences):
        return [sentence for sentence in sentences if len(sentence) > 9]

    def encode_images(self, pixels):
        return list(pixels)

    def encode_texts(self, sentences):
        return torch.tensor([[1.0 if "left" in sentence else -1.0] for sentence in sentences])

    def respond(self, image, texts, ref_ids=None):
        return texts[:, :, None] * image[0]


def test_the_grids_are_the_mean_of_both_looks():
    """Of the image [8 2] its mirror image is [2 8], seen from the other side [8 2], of which "right" scores −1."""
    responder = Mirrored(Sided())
    pixels = torch.tensor([[8.0, 2], [4, 0]]).expand(1, 3, 2, 2)
    (image,) = responder.encode_images(pixels)
    texts = responder.encode_texts(["left", "right", "cup"])
    assert texts.tolist() == [[[1], [-1]], [[-1], [1]], [[-1], [-1]]]
    grids = responder.respond(image, texts)
    assert grids.tolist() == [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[-8, -2], [-4, 0]]]
    assert responder.find_cut(["left", "on the left side"]) == ["on the left side"]
    assert responder.latin_only
