"""The choice of a map for an object, on images whose features can be added up by hand."""

import pytest
import torch

from ris_pipeline.maps.select import compute_prms, encode_masked, score_maps


class SumClip:
    """Reads 2×2 images; the feature is what each of the three channels adds up to."""

    image_size = 2

    def adapt(self, pixels):
        return pixels

    def encode_image(self, pixels):
        assert pixels.shape[1:] == (3, 2, 2)
        return pixels.sum(dim=(2, 3))


# red on the left, green on the right
PIXELS = torch.tensor([[[[1.0, 0], [1, 0]], [[0, 1], [0, 1]], [[0, 0], [0, 0]]]])
LEFT = [[5.0, -5], [5, -5]]
RIGHT = [[-5.0, 5], [-5, 5]]
RED, GREEN, BLUE = [1.0, 0, 0], [0.0, 2, 0], [0.0, 0, 3]


def test_scores_are_sums_over_the_sentences():
    scores = compute_prms(torch.tensor([[3.0, 0, 0], [0, 2.0, 0], [1.0, 1.0, 0]]), torch.tensor([RED, RED, GREEN]))
    # cosines: (1, 1, 0), (0, 0, 1), (√½, √½, √½)
    torch.testing.assert_close(scores, torch.tensor([2.0, 1.0, 3 * 0.5**0.5]))


@pytest.mark.parametrize(("mask", "left", "right"), [("relu", 5.0, 0.0), ("sigmoid", 0.9933071, 0.0066929)])
def test_masks(mask, left, right):
    features = encode_masked(torch.tensor([LEFT]), PIXELS, SumClip(), mask)
    expected = torch.tensor([[left, right, 0.0]])
    torch.testing.assert_close(features, expected / expected.norm(), atol=1e-6, rtol=0)


class PaleClip(SumClip):
    """Sees blue everywhere, so that the strength of the rest counts."""

    def encode_image(self, pixels):
        return super().encode_image(pixels) + torch.tensor([0.0, 0, 2])


@pytest.mark.parametrize(("mask", "red"), [("relu", 5.0), ("normalised", 1.0)])
def test_a_normalised_map_is_one_at_its_maximum(mask, red):
    features = encode_masked(torch.tensor([[[5.0, -5], [0, -5]]]), PIXELS, PaleClip(), mask)
    expected = torch.tensor([[red, 0, 2]])  # the upper left pixel, and the blue
    torch.testing.assert_close(features, expected / expected.norm(), atol=1e-5, rtol=0)


def test_map_is_upsampled_before_it_is_cut_at_zero():
    """Logits (1, −3) at 4 columns: 1, 0, −2, −3; cut: 1, 0, 0, 0; read at both ends by a 2×2 CLIP: 1, 0."""
    logits = torch.tensor([[[1.0, -3.0]]])
    pixels = torch.ones(1, 3, 4, 4)
    pixels[:, 1, :, :2] = 0  # green only on the right, where the map is 0
    pixels[:, 2, :, 2:] = 0
    features = encode_masked(logits, pixels, SumClip(), "relu")
    torch.testing.assert_close(features, torch.tensor([[0.5**0.5, 0.0, 0.5**0.5]]))


def test_each_ref_is_scored_by_its_own_sentences():
    logits = torch.tensor([LEFT, RIGHT, RIGHT, LEFT, LEFT])
    texts = torch.tensor([RED, GREEN, RED, GREEN, BLUE])
    ref_ids = torch.tensor([7, 7, 7, 2, 2])
    scores = score_maps(logits, PIXELS, texts, ref_ids, SumClip(), "relu")
    # ref 7: red, green, red; the left map scores 2, the right one 1. ref 2: green, blue; left scores 0
    torch.testing.assert_close(scores, torch.tensor([2.0, 1, 1, 0, 0]))


def test_what_suits_the_sentences_of_others_in_the_image_is_taken_off():
    """The left map shows red alone, the right one green. Three sentences are of two refs of one image."""
    logits = torch.tensor([LEFT, RIGHT, RIGHT, LEFT])
    texts = torch.tensor([RED, GREEN, RED, GREEN])
    ref_ids, image_of = torch.tensor([7, 7, 2, 5]), torch.tensor([0, 0, 0, 1])
    scores = score_maps(logits, PIXELS, texts, ref_ids, SumClip(), "relu", image_of, 0.5)
    # ref 7: 1 and 1, of two sentences, without 2·½ of what is red; ref 2: 0 without ½ of the mean of red and green
    torch.testing.assert_close(scores, torch.tensor([0.0, 1, -0.25, 0]))
    plain = score_maps(logits, PIXELS, texts, ref_ids, SumClip(), "relu", image_of)
    assert torch.equal(plain, score_maps(logits, PIXELS, texts, ref_ids, SumClip(), "relu"))


def test_an_image_for_each_expression():
    pixels = torch.cat([PIXELS, PIXELS.flip(-1)])
    features = encode_masked(torch.tensor([LEFT, LEFT]), pixels, SumClip(), "relu")
    torch.testing.assert_close(features, torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))


def test_a_map_of_nothing_scores_zero():
    scores = score_maps(torch.full((1, 2, 2), -1.0), PIXELS, torch.tensor([RED]), torch.tensor([1]), SumClip(), "relu")
    assert scores.tolist() == [0.0]
