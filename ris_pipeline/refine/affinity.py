"""Pixel affinities from boundaries, and the random walk that spreads a map by them (IRNet, CVPR 2019)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

# Weights below are 0: too small to show in 256 steps, and products with them would become subnormal, which is slow.
NEGLIGIBLE = 1e-20


class PathIndex:
    """The pairs of pixels nearer than `radius` and the pixels on the straight path between them.

    `offsets` is int (P, 2): (dy, dx) from one pixel of a pair to the other, each unordered pair once (dy >
    0, or dy = 0 and dx > 0). `paths[p]` is int (L, 2): the offsets of all pixels less than one pixel from
    the straight line, both ends included. Radius 5 has 34 offsets, so that a pixel has at most 68 partners.
    """

    def __init__(self, radius: int) -> None:
        self.margin = radius - 1  # the longest reach along an axis
        reach = np.arange(-self.margin, self.margin + 1)
        dy, dx = (grid.ravel() for grid in np.meshgrid(reach, reach, indexing="ij"))
        one_half = (dy > 0) | ((dy == 0) & (dx > 0))
        self.offsets = np.stack([dy, dx], axis=1)[one_half & (dy**2 + dx**2 < radius**2)]
        self.paths = tuple(_path(dy, dx) for dy, dx in self.offsets)


def _path(dy: int, dx: int) -> NDArray[np.int64]:
    """Return the pixels (L, 2) between (0, 0) and (dy, dx) that lie less than 1 off the straight line."""
    y, x = np.mgrid[0 : dy + 1, min(0, dx) : max(0, dx) + 1].reshape(2, -1)
    near = (dy * x - dx * y) ** 2 < dy**2 + dx**2
    path: NDArray[np.int64] = np.stack([y, x], axis=1)[near]
    return path


def boundary_to_affinity(boundary: NDArray[np.floating], index: PathIndex) -> NDArray[np.floating]:
    """Return 1 − the largest boundary on the path, (P, h, w), of the pair of each offset from each pixel.

    `boundary` is (h, w) in [0, 1]. The outside of the image counts as boundary 1, so pairs that leave it get 0.
    """
    height, width = boundary.shape
    margin = index.margin
    padded = np.pad(boundary, ((0, margin), (margin, margin)), constant_values=1)
    strongest = np.zeros((len(index.offsets), height, width), boundary.dtype)
    for path, out in zip(index.paths, strongest, strict=True):
        for dy, dx in path:
            np.maximum(out, padded[dy : dy + height, margin + dx : margin + dx + width], out=out)
    return 1 - strongest


def compute_transition(boundary: NDArray[np.floating], beta: float, radius: int) -> sp.dia_array:
    """Return the random walk's T (hw, hw), sparse, of the dtype of `boundary` (h, w) in [0, 1]; columns sum to 1.

    T_ij = A_ij / Σ_i A_ij with A_ij = affinity_ij^beta for pairs within the radius, A_ii = 1, and A
    symmetric. IRNet pads the boundary with 1 around and cuts the padding out of the dense A before it
    normalises; leaving out the pairs that leave the image is the same. One band per offset: 69 at radius 5.
    """
    n_pixels = boundary.size
    index = PathIndex(radius)
    weights = boundary_to_affinity(boundary, index).reshape(len(index.offsets), -1) ** beta
    weights[weights < NEGLIGIBLE] = 0

    steps = index.offsets @ [boundary.shape[1], 1]  # of the pixel number, row by row
    fits = steps > 0  # on a grid narrower than the radius, some offsets never stay inside
    bands, band_of_offset = np.unique(steps[fits], return_inverse=True)
    above = np.zeros((len(bands), n_pixels), boundary.dtype)  # dia_array keeps A_ij at column j of its band
    below = np.zeros_like(above)
    for band, weight in zip(band_of_offset, weights[fits], strict=True):
        step = bands[band]
        above[band, step:] += weight[:-step]  # on a narrow grid two offsets share a band, never an entry
        below[band] += weight
    banded = np.concatenate([above, below, np.ones((1, n_pixels), boundary.dtype)])
    offsets = np.concatenate([bands, -bands, [0]])
    return sp.dia_array((banded / banded.sum(axis=0), offsets), shape=(n_pixels, n_pixels))


def propagate(
    maps: NDArray[np.floating],
    boundary: NDArray[np.floating],
    *,
    beta: float,
    n_steps: int,
    radius: int,
) -> NDArray[np.floating]:
    """Return (maps · (1 − boundary)) · T^n_steps, (R, h, w), of maps (R, h, w) of one image, boundary (h, w).

    Computed in the dtype of `boundary`, float32 or float64.
    """
    # Differs from TRIS: n_steps sparse products with the maps instead of squaring a dense hw × hw matrix 8
    # times.
    walk = compute_transition(boundary, beta, radius).T
    walked = (maps * (1 - boundary)).reshape(len(maps), boundary.size).astype(boundary.dtype)
    # Vector by vector: scipy's banded product of one vector is 3 to 9 times faster than of several.
    for i in range(len(walked)):
        for _ in range(n_steps):
            walked[i] = walk @ walked[i]
    return walked.reshape(maps.shape)
