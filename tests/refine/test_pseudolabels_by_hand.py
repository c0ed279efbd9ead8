"""Instances and refined pseudo-labels against plain loops in float64: every step of METHOD's section 4.3 and 4.4."""

import itertools
import math

import numpy as np
import pytest

from by_hand import resize_matrix
from ris_pipeline.refine.instances import compute_pseudolabels, instance_map

HW = (10, 14)


def field(seed, hw=HW):
    """A displacement field (2, h, w) that leads to three centres, by half of the way a step, a little disturbed."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(hw)
    centres = rng.uniform((1, 1), (hw[0] - 2, hw[1] - 2), (3, 2))
    distances = np.stack([np.hypot(cy - y, cx - x) for cy, cx in centres])
    nearest = distances.argmin(axis=0)
    displacement = 0.5 * np.stack([centres[nearest, 0] - y, centres[nearest, 1] - x])
    return (displacement + rng.normal(0, 0.05, displacement.shape)).astype(np.float32)


def follow(displacement, y, x, n_steps):
    """Where a pixel ends: bilinear field, held at the image's border."""
    height, width = displacement.shape[1:]
    for _ in range(n_steps):
        y0, x0 = math.floor(y), math.floor(x)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        fy, fx = y - y0, x - x0
        dy, dx = (
            (d[y0, x0] * (1 - fx) + d[y0, x1] * fx) * (1 - fy) + (d[y1, x0] * (1 - fx) + d[y1, x1] * fx) * fy
            for d in displacement
        )
        y, x = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
    return round(y), round(x)


def components(where):
    """The number of each pixel's 4-connected component, 0 outside, by flood fill."""
    number, n = np.zeros(where.shape, int), 0
    for start in np.argwhere(where):
        if number[tuple(start)]:
            continue
        n += 1
        waiting = [tuple(start)]
        while waiting:
            y, x = waiting.pop()
            inside = 0 <= y < where.shape[0] and 0 <= x < where.shape[1]
            if inside and where[y, x] and not number[y, x]:
                number[y, x] = n
                waiting += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return number


def instances_by_hand(displacement):
    displacement = displacement.astype(float)
    clusters = components(np.hypot(*displacement) < 2.5)
    found = np.empty(displacement.shape[1:], int)
    for y, x in np.ndindex(*found.shape):
        found[y, x] = clusters[follow(displacement, y, x, 300)]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_instances(seed):
    displacement = 4 * field(seed)  # four times as far: only near the centres shorter than 2.5, so several clusters
    displacement = displacement / np.maximum(1, np.hypot(*displacement) / 3)
    found, expected = instance_map(displacement.astype(np.float32)), instances_by_hand(displacement)
    pairs = {(int(a), int(b)) for a, b in zip(found.ravel(), expected.ravel(), strict=True)}
    # the same partition of the pixels, whatever the numbers
    assert len(pairs) == len(np.unique(found)) == len(np.unique(expected))
    assert len(pairs) >= 2


def walk_by_hand(start, edge, n_steps, radius):
    """start (h, w) · T^n_steps with a dense T: affinity^10 within the radius, columns that sum to 1."""
    pixels = list(np.ndindex(*edge.shape))
    affinity = np.eye(len(pixels))
    for (i, (y0, x0)), (j, (y1, x1)) in itertools.combinations(enumerate(pixels), 2):
        length = math.hypot(y1 - y0, x1 - x0)
        if length < radius:
            box = itertools.product(range(min(y0, y1), max(y0, y1) + 1), range(min(x0, x1), max(x0, x1) + 1))
            near = [edge[y, x] for y, x in box if abs((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0)) / length < 1 - 1e-12]
            affinity[i, j] = affinity[j, i] = (1 - max(near)) ** 10
    T = affinity / affinity.sum(axis=0)
    return (start.reshape(1, -1) @ np.linalg.matrix_power(T, n_steps)).reshape(edge.shape)


@pytest.mark.parametrize("radius", [5, 2])
def test_pseudolabels(radius):
    """Split by instance, walk 256 steps, ×4, over the ref's largest value, above 0.25, union of the instances."""
    rng = np.random.default_rng(3)
    height, width = 4 * HW[0] - 1, 4 * HW[1] - 2  # the image's size need not be a multiple of the stride
    edge = rng.uniform(0, 0.2, HW).astype(np.float32)
    edge[:, 6] = 0.9
    displacement = field(1)
    instances = instances_by_hand(displacement)
    y, x = np.indices((height, width))
    maps = np.stack([np.exp(-((y - 15) ** 2 + (x - cx) ** 2) / 90) for cx in (9, 40)]).astype(np.float32)

    masks = compute_pseudolabels(
        maps, edge, displacement, (height, width), threshold=0.25, beta=10, n_steps=256, radius=radius
    )
    rows, columns = resize_matrix(height, HW[0], True), resize_matrix(width, HW[1], True)
    up = resize_matrix(HW[0], 4 * HW[0], False), resize_matrix(HW[1], 4 * HW[1], False)
    for response, mask in zip(maps, masks, strict=True):
        small = rows @ response.astype(float) @ columns.T
        walked = [
            walk_by_hand(np.where(instances == n, small, 0) * (1 - edge.astype(float)), edge, 256, radius)
            for n in np.unique(instances)
        ]
        scores = [(up[0] @ field @ up[1].T)[:height, :width] for field in walked]
        scores = np.stack(scores) / np.max(scores)
        sure = np.abs(scores.max(axis=0) - 0.25) > 1e-4  # beside the threshold rounding decides
        np.testing.assert_array_equal(mask[sure], (scores.max(axis=0) > 0.25)[sure])
        assert sure.mean() > 0.99
        assert 0.02 < mask.mean() < 0.9
