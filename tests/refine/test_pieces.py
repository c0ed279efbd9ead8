"""Labels in pieces, on pictures of coloured squares and a CLIP that reads colours."""

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn

from ris_pipeline.datasets import Dataset, Expression, Image, Ref
from ris_pipeline.datasets.io.labels import load_label, save_label
from ris_pipeline.datasets.records import group_by_image
from ris_pipeline.refine.pieces import MOST, find_pieces, keep_meant_pieces

HW = (16, 24)
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


class ColourClip(nn.Module):
    """The feature of an image is the sum of its colours, that of a sentence the sum of the colours that it names."""

    image_size = 16

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def adapt(self, pixels):
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        black = (-mean / std)[:, None, None]
        return torch.where(pixels == 0, 0, pixels - black)  # outside of a mask pixels are 0

    def encode_image(self, pixels):
        return pixels.sum(dim=(2, 3))

    def tokenize(self, sentences):
        return list(sentences)

    def encode_text(self, sentences):
        named = [np.sum([COLOURS[word] for word in text.split()], axis=0) for text in sentences]
        return torch.from_numpy(np.stack(named)).float()


# Rows and columns of the squares of the picture.
PLACES = {"red": np.s_[2:8, 2:8], "green": np.s_[9:15, 10:16], "blue": np.s_[2:8, 17:23]}


def mask_of(*colours):
    mask = np.zeros(HW, np.uint8)
    for colour in colours:
        mask[PLACES[colour]] = 1
    return mask


def keep(folder, labels, sentences):
    """What is left of the labels of refs that have a sentence each, all of one image."""
    pixels = np.zeros((*HW, 3), np.uint8)
    for colour, place in PLACES.items():
        pixels[place] = 255 * np.array(COLOURS[colour])
    Picture.fromarray(pixels).save(folder / "image.png")
    refs = tuple(Ref(i, 0, "train", (Expression(i, text),)) for i, text in enumerate(sentences))
    dataset = Dataset("tiny", "train", {0: Image(0, folder / "image.png", HW)}, refs)
    for i, label in enumerate(labels):
        save_label(folder / f"{i}.png", label)
    done = []
    keep_meant_pieces(dataset, group_by_image(dataset), folder, ColourClip(), 16, done.append)
    assert sum(done) == len(refs)
    kept = [load_label(folder / f"{i}.png") for i in range(len(refs))]
    keep_meant_pieces(dataset, group_by_image(dataset), folder, ColourClip(), 16, done.append)
    for i, label in enumerate(kept):  # a run that goes on chooses again
        np.testing.assert_array_equal(load_label(folder / f"{i}.png"), label)
    return kept


def test_pieces_are_the_large_ones_the_largest_first():
    mask = np.zeros(HW, bool)
    mask[0:2, 0:5] = True  # 10 pixels
    mask[5:9, 0:5] = True  # 20
    mask[12, 3] = mask[13, 4] = True  # two that touch at a corner: a tenth of 20
    mask[15, 20] = True  # less than a tenth
    assert [piece.sum() for piece in find_pieces(mask)] == [20, 10, 2]
    assert find_pieces(np.zeros(HW, bool)) == []


def test_of_many_pieces_the_largest_are_looked_at():
    mask = np.zeros(HW, bool)
    mask[::2, ::2] = True  # 96 single pixels
    mask[0, 0:3] = True
    pieces = find_pieces(mask)
    assert len(pieces) == MOST
    assert [piece.sum() for piece in pieces][:2] == [3, 1]


@pytest.mark.parametrize(("sentence", "kept"), [("blue", ["blue"]), ("red", ["red"]), ("red blue", ["red", "blue"])])
def test_the_meant_piece_stays_or_all(tmp_path, sentence, kept):
    (label,) = keep(tmp_path, [mask_of("red", "blue")], [sentence])
    np.testing.assert_array_equal(label, mask_of(*kept))


def test_what_other_refs_are_said_to_be_counts_against_a_piece(tmp_path):
    """The whole suits "red blue" best, and once another ref is the blue one, the red piece does."""
    labels = [mask_of("red", "blue"), mask_of("blue")]
    alone, _ = keep(tmp_path, labels, ["red blue", "green"])
    np.testing.assert_array_equal(alone, mask_of("red", "blue"))
    beside, other = keep(tmp_path, labels, ["red blue", "blue"])
    np.testing.assert_array_equal(beside, mask_of("red"))
    np.testing.assert_array_equal(other, mask_of("blue"))


def test_ignored_pixels_and_labels_in_one_piece_stay(tmp_path):
    ignored = mask_of("red", "blue")
    ignored[15] = 255
    whole = mask_of("green")
    whole[0, 0] = 1  # a speck
    labels = keep(tmp_path, [ignored, whole, mask_of()], ["red", "blue", "red"])
    assert (labels[0][15] == 255).all()
    np.testing.assert_array_equal(labels[0][:15], mask_of("red")[:15])
    np.testing.assert_array_equal(labels[1], whole)
    np.testing.assert_array_equal(labels[2], mask_of())
