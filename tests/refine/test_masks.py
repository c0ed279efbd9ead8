"""Masks of two plain colours, which the dense CRF takes apart where they meet."""

import numpy as np
import pytest

from ris_pipeline.refine.crf import MIN_PIXELS
from ris_pipeline.refine.masks import MAX_SIDE, clean_masks


def test_the_crf_is_the_one_that_is_given():
    image, masks = np.zeros((40, 60, 3), np.uint8), np.zeros((2, 40, 60), bool)
    masks[0, :5], masks[1, 0, :MIN_PIXELS] = True, True
    cleaned = clean_masks(image, masks, lambda image, labels, settings: np.roll(labels, 20, axis=1))
    np.testing.assert_array_equal(cleaned, np.roll(masks, 20, axis=1))


@pytest.mark.parametrize("scale", [1, 8])
def test_masks_keep_to_the_edges_of_the_image_at_any_size(scale):
    """A mask that reaches 2 of 120 columns too far; the larger image is cleaned at a smaller size."""
    image = np.zeros((80 * scale, 120 * scale, 3), np.uint8)
    image[:, : 60 * scale] = 255
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[0, :, : 62 * scale] = True
    assert (max(image.shape) > MAX_SIDE) == (scale > 1)
    cleaned = clean_masks(image, masks)
    assert cleaned.dtype == bool
    assert not cleaned[1].any()
    wrong = cleaned[0] != (image[:, :, 0] > 0)
    assert wrong.mean() < 0.005
