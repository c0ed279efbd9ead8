import numpy as np
import pytest

from ris_pipeline.refine.affinity import PathIndex, boundary_to_affinity, compute_transition, propagate

PAPER = {"beta": 10, "n_steps": 256, "radius": 5}


def affinity_by_hand(edge, radius, beta):
    """Dense A (hw, hw) over all pairs of pixels, one at a time, float64."""
    height, width = edge.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    affinity = np.eye(len(pixels))
    for i, (y0, x0) in enumerate(pixels):
        for j, (y1, x1) in enumerate(pixels):
            length = np.hypot(y1 - y0, x1 - x0)
            if i == j or length >= radius:
                continue
            strongest = 0.0
            for y in range(min(y0, y1), max(y0, y1) + 1):
                for x in range(min(x0, x1), max(x0, x1) + 1):
                    off_line = abs((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0)) / length
                    if off_line < 1 - 1e-12:
                        strongest = max(strongest, edge[y, x])
            affinity[i, j] = (1 - strongest) ** beta
    return affinity


def walk_by_hand(maps, edge, beta, n_steps):
    affinity = affinity_by_hand(edge, radius=5, beta=beta)
    transition = affinity / affinity.sum(axis=0)
    start = (maps * (1 - edge)).reshape(len(maps), -1)
    return (start @ np.linalg.matrix_power(transition, n_steps)).reshape(maps.shape)


def test_radius_5_has_34_offsets_in_one_half_plane():
    index = PathIndex(5)
    offsets = {tuple(offset) for offset in index.offsets.tolist()}
    assert len(offsets) == 34
    assert all((-dy, -dx) not in offsets for dy, dx in offsets)
    assert (0, 4) in offsets
    assert (3, -4) not in offsets  # length 5 is not nearer than 5
    assert (3, -3) in offsets


@pytest.mark.parametrize(
    ("offset", "path"),
    [
        ((0, 3), {(0, 0), (0, 1), (0, 2), (0, 3)}),
        # (0, 1) and (1, 0) lie 1/√2 beside the diagonal
        ((1, 1), {(0, 0), (0, 1), (1, 0), (1, 1)}),
        # (0, 3) and (1, 0) lie 3/√10 = 0.95 beside the line, and belong to the path
        ((1, 3), {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)}),
        # (0, -1) lies 2/√8 = 0.71 beside the diagonal, (0, -2) lies 4/√8 = 1.41 beside it
        ((2, -2), {(0, 0), (0, -1), (1, 0), (1, -1), (1, -2), (2, -1), (2, -2)}),
    ],
)
def test_paths(offset, path):
    index = PathIndex(5)
    position = index.offsets.tolist().index(list(offset))
    assert {tuple(pixel) for pixel in index.paths[position].tolist()} == path


def test_affinity_is_cut_by_an_edge_between_and_by_the_border():
    edge = np.zeros((3, 5))
    edge[:, 2] = 0.75
    index = PathIndex(4)
    affinity = boundary_to_affinity(edge, index)
    across = affinity[index.offsets.tolist().index([0, 3])]
    np.testing.assert_array_equal(across[0], [0.25, 0.25, 0, 0, 0])
    down = affinity[index.offsets.tolist().index([1, 0])]
    np.testing.assert_array_equal(down, [[1, 1, 0.25, 1, 1], [1, 1, 0.25, 1, 1], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("hw", [(9, 11), (7, 3), (2, 6), (1, 1)])
def test_transition_equals_all_pairs_by_hand(hw):
    edge = np.random.default_rng(0).uniform(0, 0.4, hw)
    affinity = affinity_by_hand(edge, radius=5, beta=10)
    transition = compute_transition(edge, beta=10, radius=5).toarray()
    np.testing.assert_allclose(transition, affinity / affinity.sum(axis=0), atol=1e-15)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(np.float64, 0, 1e-6), (np.float32, 1e-4, 0)])
def test_walk_equals_the_dense_matrix_power(dtype, rtol, atol):
    rng = np.random.default_rng(1)
    edge = rng.uniform(0, 0.3, (9, 11))
    edge[:, 6] = 0.9
    maps = rng.uniform(0, 1, (2, 9, 11))
    maps[1, :, 6:] = 0
    walked = propagate(maps.astype(dtype), edge.astype(dtype), **PAPER)
    assert walked.dtype == dtype
    np.testing.assert_allclose(walked, walk_by_hand(maps, edge, 10, 256), rtol=rtol, atol=atol)


def test_a_full_edge_keeps_the_map_on_its_side():
    edge = np.zeros((5, 9), np.float32)
    edge[:, 4] = 1
    left = np.zeros((1, 5, 9), np.float32)
    left[0, 2, 1] = 1
    walked = propagate(left, edge, **PAPER)
    assert (walked[0, :, :4] > 0.01).all()
    assert not walked[0, :, 4:].any()


def test_an_even_map_stays_even_without_edges():
    even = np.full((1, 4, 6), 0.3, np.float32)
    np.testing.assert_allclose(propagate(even, np.zeros((4, 6), np.float32), **PAPER), 0.3, rtol=1e-5)


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_one_step_reaches_what_is_nearer_than_the_radius(radius):
    start = np.zeros((1, 11, 11))
    start[0, 5, 5] = 1
    y, x = np.indices((11, 11)) - 5
    walked = propagate(start, np.zeros((11, 11)), beta=10, n_steps=1, radius=radius)
    np.testing.assert_array_equal(walked[0] > 0, y**2 + x**2 < radius**2)
