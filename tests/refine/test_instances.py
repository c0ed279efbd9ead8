import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ris_pipeline.refine.instances import (
    compute_pseudolabels,
    follow_displacement,
    instance_map,
    resize,
    split_by_instance,
)

PAPER = {"threshold": 0.25, "beta": 10, "n_steps": 256, "radius": 5}


def field_towards(centres, hw, speed=0.5):
    """Displacement (2, h, w) of each pixel to its nearest centre, and the number of that centre."""
    y, x = np.indices(hw).astype(np.float32)
    towards = np.stack([np.stack([cy - y, cx - x]) for cy, cx in centres])  # (centres, 2, h, w)
    nearest = np.hypot(towards[:, 0], towards[:, 1]).argmin(axis=0)
    return speed * np.take_along_axis(towards, nearest[None, None], axis=0)[0], nearest


def test_pixels_follow_the_field_to_its_centre():
    displacement, _ = field_towards([(3, 8)], (9, 12))
    end = follow_displacement(displacement, 300)
    np.testing.assert_array_equal(end[0], np.full((9, 12), 3))
    np.testing.assert_array_equal(end[1], np.full((9, 12), 8))


def test_a_step_is_bilinear_and_stops_at_the_border():
    # Pixel (0, 0) goes to (0, 0.5), where the field is the mean of (0, 0.5) and (1, 2): to (0.5, 1.75).
    displacement = np.zeros((2, 2, 3), np.float32)
    displacement[:, 0, 0] = (0, 0.5)
    displacement[:, 0, 1] = (1, 2)
    end = follow_displacement(displacement, 2)
    np.testing.assert_array_equal(end[:, 0, 0], [0, 2])  # 0.5 rounds to the even 0
    np.testing.assert_array_equal(end[:, 0, 1], [1, 2])  # (1, 3) lies outside
    np.testing.assert_array_equal(end[:, 1, 1], [1, 1])


def test_two_centres_are_two_instances():
    displacement, nearest = field_towards([(8, 6), (9, 24)], (18, 32))
    instances = instance_map(displacement)
    np.testing.assert_array_equal(instances, nearest)


def test_clusters_that_touch_at_a_corner_are_two():
    displacement = np.full((2, 2, 2), 9, np.float32)
    displacement[:, 0, 0] = 0
    displacement[:, 1, 1] = 0
    # (0, 1) and (1, 0) run into the corner (1, 1)
    np.testing.assert_array_equal(instance_map(displacement), [[0, 1], [1, 1]])


def test_split_by_instance():
    pieces = split_by_instance(np.array([[0.5, 0.25], [1, 0]]), np.array([[0, 1], [1, 1]]))
    np.testing.assert_array_equal(pieces, [[[0.5, 0], [0, 0]], [[0, 0.25], [1, 0]]])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("hw", [(28, 20), (3, 9)])
def test_resize_equals_torch(hw, align_corners):
    maps = np.random.default_rng(0).random((2, 7, 5)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(maps)[None], hw, mode="bilinear", align_corners=align_corners)
    np.testing.assert_allclose(resize(maps, hw, align_corners), expected[0].numpy(), atol=1e-6)


def scene():
    """Two squares with boundaries and centres on a 16×32 grid of a 62×127 image."""
    edge = np.zeros((16, 32), np.float32)
    for left in (3, 19):
        edge[3:12, left : left + 9] = 0.99
        edge[4:11, left + 1 : left + 8] = 0
    displacement, _ = field_towards([(7, 7), (7, 23)], (16, 32))
    return edge, displacement, (62, 127)


def test_the_walk_fills_the_square_in_which_the_map_answers():
    edge, displacement, image_hw = scene()
    maps = np.zeros((2, 62, 127), np.float32)
    maps[0, 26:32, 26:32] = 1  # a spot in the left square
    maps[1, 22:30, 90:96] = 1  # a spot in the right square
    masks = compute_pseudolabels(maps, edge, displacement, image_hw, **PAPER)
    assert masks.dtype == np.uint8
    assert masks.shape == (2, 62, 127)
    for mask, left in zip(masks, (16, 80), strict=True):
        assert mask[20:40, left + 4 : left + 24].all()
        outside = mask.copy()
        outside[12:48, left - 4 : left + 32] = 0
        assert not outside.any()


def test_a_map_without_response_has_an_empty_mask():
    edge, displacement, image_hw = scene()
    maps = np.zeros((2, 62, 127), np.float32)
    maps[1, 26:32, 26:32] = 1
    masks = compute_pseudolabels(maps, edge, displacement, image_hw, **PAPER)
    assert not masks[0].any()
    assert masks[1].any()
    assert not compute_pseudolabels(maps[:1], edge, displacement, image_hw, **PAPER).any()
