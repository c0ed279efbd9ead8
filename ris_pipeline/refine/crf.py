"""Dense CRF with two labels on a sparse permutohedral lattice.

Mean field of Krähenbühl & Koltun (NeurIPS 2011) with Gaussian filtering by Adams et al. (Eurographics 2010), with the
numbers of the methods that use it. Splat, blur and slice are sparse matrices that depend on the image only, so any
number of label problems of one image are the columns of one product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CrfSettings:
    """The numbers of both kernels."""

    gaussian_sigma_xy: float  # pixels
    gaussian_weight: float
    bilateral_sigma_xy: float  # pixels
    bilateral_sigma_rgb: float  # grey levels of 255
    bilateral_weight: float


IRNET = CrfSettings(3.0, 3.0, 50.0, 5.0, 10.0)  # with which IRNet (CVPR 2019) cleans its confident labels
CLIP_ES = CrfSettings(3.0, 3.0, 67.0, 3.0, 4.0)  # of CLIP-ES (CVPR 2023), and of CaR (CVPR 2024)
LABEL_PROB = 0.7  # trust in a given hard label; IRNet
MIN_PROB = 1e-5  # lower limit of a score; CLIP-ES
N_ITERATIONS = 10  # of all three
MIN_PIXELS = 20  # of a label: the CRF takes small objects for noise
PROBLEMS_AT_ONCE = 16  # bounds the memory: an image of 480×640 takes 30 MB for two of them

# `refine_labels`, on whatever device
Refine = Callable[[NDArray[np.uint8], NDArray[np.uint8], CrfSettings], NDArray[np.uint8]]


class DenseCrf:
    """Mean field of one image, uint8 (H, W, 3), for many two-label problems at once."""

    def __init__(self, image: NDArray[np.uint8], settings: CrfSettings) -> None:
        self.hw = image.shape[:2]
        y, x = np.indices(self.hw, dtype=np.float32).reshape(2, -1)
        rgb = image.reshape(-1, 3).T.astype(np.float32)
        # The spatial kernel goes through a lattice too, though a separable filter would be exact: one code
        # for both kernels, as fast, and the approximation that the released labels were made with.
        self._kernels = (
            NormalizedKernel(np.stack([x, y]) / settings.gaussian_sigma_xy, settings.gaussian_weight),
            NormalizedKernel(
                np.concatenate(
                    [np.stack([x, y]) / settings.bilateral_sigma_xy, rgb / settings.bilateral_sigma_rgb],
                ),
                settings.bilateral_weight,
            ),
        )

    def log_odds(self, unary: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ln Q(1)/Q(0) after the mean-field iterations, float32 (M, H, W), of those before, float32 (M, H, W).

        With two labels, Q(1) − Q(0) = tanh(log-odds / 2), and the Potts messages of both labels only enter
        by their difference: l = ln p(1)/p(0) + Σ_k w_k K_k tanh(l / 2) is the whole update. A pixel's
        message to itself is part of K, as in pydensecrf.
        """
        odds = np.empty(unary.shape, np.float32)
        for start in range(0, len(odds), PROBLEMS_AT_ONCE):
            odds[start : start + PROBLEMS_AT_ONCE] = self._mean_field(unary[start : start + PROBLEMS_AT_ONCE])
        return odds

    def _mean_field(self, unary: NDArray[np.float32]) -> NDArray[np.float32]:
        n_problems = len(unary)
        unary = unary.reshape(n_problems, -1).T  # (HW, M): problems are columns
        odds = unary
        for _ in range(N_ITERATIONS):
            difference = np.tanh(odds / 2)
            odds = unary + sum(kernel.filter(difference) for kernel in self._kernels)
        return odds.T.reshape(n_problems, *self.hw)


def odds_of_labels(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return ln p(1)/p(0) of hard labels {0, 1}, float32 of the same shape: each right with LABEL_PROB."""
    odds = np.float32(np.log(LABEL_PROB / (1 - LABEL_PROB)))
    return np.where(labels > 0, odds, -odds)


def odds_of_scores(foreground: NDArray[np.float32], background: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ln p(1)/p(0), float32, of two scores float32 in [0, 1] of one shape, neither below MIN_PROB."""
    odds: NDArray[np.float32] = np.log(np.maximum(foreground, MIN_PROB)) - np.log(np.maximum(background, MIN_PROB))
    return odds.astype(np.float32)


def refine_labels(image: NDArray[np.uint8], hard_labels: NDArray[np.uint8], settings: CrfSettings) -> NDArray[np.uint8]:
    """Return the most probable labels, uint8 {0, 1} (M, H, W), given hard labels {0, 1} (M, H, W), as IRNet.

    `image` is uint8 (H, W, 3) RGB. A tie goes to label 0.
    """
    return (DenseCrf(image, settings).log_odds(odds_of_labels(hard_labels)) > 0).astype(np.uint8)


def fit_to_size(hw: tuple[int, int]) -> CrfSettings:
    """Return the kernels for whole objects in an image of this size, a twentieth of its longer side wide.

    Chosen for coarse masks on photographs and on drawn shapes (docs/decisions.md). IRNet's are for seeds, which may be
    small: they cut an object along its stripes and shades.
    """
    side = max(hw)
    return CrfSettings(0.006 * side, 3.0, 0.05 * side, 10.0, 5.0)


def clean_labels(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], refine: Refine = refine_labels
) -> NDArray[np.uint8]:
    """Return labels uint8 {0, 1} (M, H, W) after the dense CRF of `fit_to_size`, less what it takes from within.

    A stripe or a shade that looks like the background is cut out of its object. So what was given stays where a
    closing of the cleaned label covers it, by a disk as wide as the bilateral kernel's standard deviation.
    A label stays as it was where fewer than MIN_PIXELS would be left.
    """
    settings = fit_to_size(image.shape[:2])
    cleaned = refine(image, labels, settings)
    width = 2 * round(settings.bilateral_sigma_xy / 2) + 1
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    for own, given in zip(cleaned, labels, strict=True):
        if own.sum() < MIN_PIXELS:
            own[:] = given
        else:
            own |= given & cv2.morphologyEx(own, cv2.MORPH_CLOSE, disk)
    return cleaned


class NormalizedKernel:
    """weight · N^-½ K N^-½ of a Gaussian kernel K over features, N its row sums: symmetric normalisation."""

    def __init__(self, features: NDArray[np.float32], weight: float) -> None:
        slice_, self._blurs = build_lattice(features)
        row_sums = slice_ @ self._blur(slice_.T @ np.ones((features.shape[1], 1), np.float32))
        slice_ = sp.diags_array(1 / np.sqrt(row_sums[:, 0])) @ slice_
        self._splat = slice_.T.tocsr()
        self._slice = weight * slice_

    def filter(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the filtered values, float32 (N, M), one column a problem."""
        filtered: NDArray[np.float32] = self._slice @ self._blur(self._splat @ values)
        return filtered

    def _blur(self, vertices: NDArray[np.float32]) -> NDArray[np.float32]:
        for blur in self._blurs:
            vertices = blur @ vertices
        return vertices


def build_lattice(features: NDArray[np.float32]) -> tuple[sp.csr_array, list[sp.csr_array]]:
    """Return the slice matrix (N points × V vertices) and the d+1 blur matrices (V × V), float32.

    `features` is (d, N) in units of the kernel's standard deviation. A point's row of the slice matrix
    holds its barycentric weights on the d+1 vertices of its simplex; splatting is the transpose; a blur is
    [½ 1 ½] along one lattice axis. The kernel is right up to a constant factor, which the symmetric
    normalisation cancels.
    """
    remainder_zero, rank, barycentric = _enclosing_simplex(features)
    n_axes, n_points = remainder_zero.shape
    strides = _key_strides(remainder_zero)

    # Vertex k of the simplex is vertex k−1 plus (1, …, 1), less d+1 in the coordinate of rank d+1−k. Keys
    # are linear in the coordinates, so one key addition moves a vertex. The last coordinate follows from
    # the others (they sum to 0) and stays out of the key: stride 0.
    stride_of_rank = np.empty_like(remainder_zero)
    np.put_along_axis(stride_of_rank, rank, strides[:, None], axis=0)
    keys = np.empty((n_points, n_axes), np.int64)
    keys[:, 0] = strides @ remainder_zero
    for k in range(1, n_axes):
        keys[:, k] = keys[:, k - 1] + strides.sum() - n_axes * stride_of_rank[n_axes - k]

    vertex_keys, vertex = np.unique(keys, return_inverse=True)
    n_vertices = len(vertex_keys)
    row_starts = np.arange(0, keys.size + 1, n_axes)
    slice_ = sp.csr_array((barycentric.T.ravel(), vertex.ravel(), row_starts), shape=(n_points, n_vertices))
    return slice_, [_blur_matrix(vertex_keys, n_axes * stride - strides.sum()) for stride in strides]


def _enclosing_simplex(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return each point's remainder-0 vertex, coordinate ranks and barycentric weights, all (d+1, N).

    Adams et al. 2010, section 3: lift the points onto the plane Σx = 0 in d+1 dimensions, round to the
    nearest point whose coordinates are multiples of d+1, and sort the differences.
    """
    d, n_points = features.shape
    n_axes = d + 1
    lift = np.triu(np.ones((n_axes, d)))
    lift[np.arange(1, n_axes), np.arange(d)] = -np.arange(1, n_axes)
    # [½ 1 ½] along all axes has standard deviation √(2/3)·(d+1) in lattice units
    axis_scale = np.sqrt(2 / 3) * n_axes / np.sqrt(np.arange(1, n_axes) * np.arange(2, n_axes + 1))
    lifted = (lift * axis_scale).astype(np.float32) @ features

    rounded = np.rint(lifted / n_axes)
    excess = rounded.sum(axis=0).astype(np.int64)
    remainder_zero = n_axes * rounded.astype(np.int64)
    difference = lifted - remainder_zero

    rank = np.zeros((n_axes, n_points), np.int64)  # 0 = largest difference
    for i in range(n_axes):
        for j in range(i + 1, n_axes):
            smaller = difference[i] < difference[j]
            rank[i] += smaller
            rank[j] += ~smaller
    # Where rounding left the plane, the coordinates that were rounded farthest step back onto it.
    rank += excess
    step_back = n_axes * ((rank < 0).astype(np.int64) - (rank > d))
    rank += step_back
    remainder_zero += step_back

    by_rank = np.empty((n_axes, n_points), np.float32)
    np.put_along_axis(by_rank, rank, ((lifted - remainder_zero) / n_axes).astype(np.float32), axis=0)
    barycentric = by_rank[::-1] - np.roll(by_rank[::-1], 1, axis=0)
    barycentric[0] += 1
    return remainder_zero, rank, barycentric


def _key_strides(remainder_zero: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 (d+1,) factors that pack vertices and neighbours into distinct keys; the last is 0."""
    # A simplex reaches d from its remainder-0 vertex and a neighbour d farther: two such margins on each
    # side.
    n_axes = len(remainder_zero)
    spans = np.ptp(remainder_zero[:-1], axis=1) + 4 * n_axes
    return np.concatenate([[1], np.cumprod(spans[:-1]), [0]]).astype(np.int64)


def _blur_matrix(vertex_keys: NDArray[np.int64], key_step: int) -> sp.csr_array:
    """Return I + ½ (neighbour before + neighbour behind), float32 (V, V); a missing neighbour counts 0."""
    n_vertices = len(vertex_keys)
    position = np.searchsorted(vertex_keys, vertex_keys + key_step)
    position[position == n_vertices] = 0
    here = np.flatnonzero(vertex_keys[position] == vertex_keys + key_step)
    there = position[here]

    columns = np.full((n_vertices, 3), -1, np.int32)  # before, the vertex itself, behind
    columns[:, 1] = np.arange(n_vertices)
    columns[here, 2] = there
    columns[there, 0] = here
    exists = columns >= 0
    row_starts = np.concatenate([[0], np.cumsum(exists.sum(axis=1))])
    weights = np.broadcast_to(np.array([0.5, 1, 0.5], np.float32), columns.shape)
    return sp.csr_array((weights[exists], columns[exists], row_starts), shape=(n_vertices, n_vertices))
