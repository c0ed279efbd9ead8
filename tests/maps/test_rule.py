"""The rule from grid to map to mask, against a bilinear resampling written without a look at the code."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import RESPONSE, SEGMENTATION, Rule, compute_map, compute_mask, parse_rule, show_map


def source_positions(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """Where n_out samples lie among n_in: end to end, or at centres of equal cells, clamped to the rim."""
    i = np.arange(n_out)
    if align_corners:
        return i * (n_in - 1) / max(n_out - 1, 1)
    return np.clip((i + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)


def bilinear(grid: np.ndarray, hw: tuple[int, int], align_corners: bool) -> np.ndarray:
    """One map at a time, rows then columns, by numpy's own linear interpolation in float64."""
    h, w = grid.shape
    ys, xs = source_positions(h, hw[0], align_corners), source_positions(w, hw[1], align_corners)
    columns = np.stack([np.interp(ys, np.arange(h), grid[:, x]) for x in range(w)], axis=1)
    return np.stack([np.interp(xs, np.arange(w), row) for row in columns])


def map_by_hand(grid: np.ndarray, input_size: int, image_hw: tuple[int, int]) -> np.ndarray:
    at_input = np.maximum(bilinear(grid.astype(np.float64), (input_size, input_size), align_corners=False), 0)
    at_image = bilinear(at_input, image_hw, align_corners=True)
    return at_image / (at_image.max() + 1e-5)


def test_the_resampling_of_this_test_by_hand():
    grid = np.array([[0.0, 4.0]])
    np.testing.assert_allclose(bilinear(grid, (1, 4), align_corners=False), [[0, 1, 3, 4]])
    np.testing.assert_allclose(bilinear(grid, (1, 5), align_corners=True), [[0, 1, 2, 3, 4]])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    grid_hw=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    input_size=st.integers(6, 24),
    image_hw=st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
def test_compute_map_follows_the_rule(seed, grid_hw, input_size, image_hw):
    grids = np.random.default_rng(seed).normal(scale=5, size=(3, *grid_hw)).astype(np.float32)
    maps = compute_map(torch.from_numpy(grids), RESPONSE, input_size, image_hw).numpy()
    assert maps.shape == (3, *image_hw)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.max() < 1
    for grid, computed in zip(grids, maps, strict=True):
        np.testing.assert_allclose(computed, map_by_hand(grid, input_size, image_hw), atol=2e-5)


def test_compute_map_by_hand():
    # 2×2 → input 4×4: each row 0 1 3 4. The image is 4×4 too, so the second step changes nothing.
    grid = torch.tensor([[[0.0, 4.0], [0.0, 4.0]], [[-1.0, -2.0], [-3.0, -4.0]]])
    maps = compute_map(grid, RESPONSE, 4, (4, 4))
    np.testing.assert_allclose(maps[0].numpy(), np.tile([0, 0.25, 0.75, 1], (4, 1)), atol=1e-5)
    assert not maps[1].any()  # nothing positive: zeros, no division by zero


def test_compute_map_normalises_each_map_by_itself():
    grid = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    first, twice_as_high = compute_map(torch.cat([grid, 2 * grid]), RESPONSE, 20, (30, 40))
    np.testing.assert_allclose(first.numpy(), twice_as_high.numpy(), atol=1e-4)


PLAIN = Rule(via_input=False, activation="none", to_image="centres", normalise="none", threshold=0.5)
GRID = torch.tensor([[[-1.0, 3.0]]])


def test_each_part_of_a_rule_is_executed():
    """A grid (−1, 3) on an image of one row and four columns: −1 0 2 3 by centres, −1 ⅓ 1⅔ 3 by corners."""

    def on_four(grid=GRID, input_size=2, **changes):
        return compute_map(grid, replace(PLAIN, **changes), input_size, (1, 4))[0, 0].numpy()

    np.testing.assert_allclose(on_four(), [-1, 0, 2, 3])
    np.testing.assert_allclose(on_four(to_image="corners"), [-1, 1 / 3, 5 / 3, 3], rtol=1e-6)
    np.testing.assert_allclose(on_four(activation="relu"), [0, 0.75, 2.25, 3])
    np.testing.assert_allclose(on_four(activation="clamp"), [0, 0.25, 0.75, 1])
    low, high = 1 / (1 + np.e), 1 / (1 + np.exp(-3))
    between = [low, 0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high, high]
    np.testing.assert_allclose(on_four(activation="sigmoid"), between, rtol=1e-6)
    np.testing.assert_allclose(on_four(normalise="max"), np.array([-1, 0, 2, 3]) / 3.00001, rtol=1e-6)
    np.testing.assert_allclose(on_four(normalise="minmax"), np.array([0, 1, 3, 4]) / 4.00001, rtol=1e-6)
    np.testing.assert_allclose(on_four(via_input=True, input_size=4), [-1, 0, 2, 3])


def test_a_mask_is_what_exceeds_the_threshold():
    maps = torch.tensor([[[0.4, 0.5, 0.6]]])
    assert compute_mask(maps, PLAIN).tolist() == [[[False, False, True]]]
    assert compute_mask(torch.tensor([[[-1.0, 0.0, 1e-9]]]), SEGMENTATION).tolist() == [[[False, False, True]]]


def test_logits_are_shown_by_their_sigmoid_and_other_maps_as_they_are():
    logits = compute_map(torch.tensor([[[-2.0, 2.0], [0.0, 4.0]]]), SEGMENTATION, 2, (2, 2))
    np.testing.assert_allclose(logits, [[[-2, 2], [0, 4]]])
    np.testing.assert_allclose(show_map(logits, SEGMENTATION), 1 / (1 + np.exp([[[2.0, -2], [0, -4]]])), rtol=1e-6)
    maps = torch.rand(1, 3, 3)
    assert show_map(maps, RESPONSE) is maps


def test_logits_at_image_size_keep_their_corners():
    maps = compute_map(torch.tensor([[[-3.0, 3], [-3, 3]]]), SEGMENTATION, 2, (2, 4))
    np.testing.assert_allclose(maps[0], [[-3, -1, 1, 3], [-3, -1, 1, 3]], rtol=1e-6)


def test_a_rule_survives_json():
    assert parse_rule(asdict(PLAIN), "x.zarr") == PLAIN


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation": "gelu"}, "activation"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"via_input": 1}, "via_input"),
        ({"power": 2.0}, "rule"),
    ],
)
def test_what_is_no_rule_is_refused(changes, named):
    with pytest.raises(RisError, match=rf"x\.zarr: rule: .*{named if named != 'rule' else 'must have'}"):
        parse_rule(asdict(PLAIN) | changes, "x.zarr")
