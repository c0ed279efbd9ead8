"""Instances from the displacement field, and pseudo-label masks from the random walk over each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ris_pipeline.arrays import BACKGROUND, FOREGROUND
from ris_pipeline.refine.affinity import propagate

STRIDE = 4  # of the boundary and displacement maps against the image
N_STEPS = 300  # along the field; IRNet
WEAK_LENGTH = 2.5  # cells; shorter displacements form the clusters; IRNet


def instance_map(displacement: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return each pixel's instance, int (h, w) from 0 on, of a displacement field (2, h, w) in (dy, dx).

    Pixels whose displacement is shorter than WEAK_LENGTH form clusters (4-connected); a pixel belongs to
    the cluster in which its trajectory ends. Trajectories that end outside every cluster share one
    instance.
    """
    return find_instances(displacement, follow_displacement(displacement, N_STEPS))


def find_instances(displacement: NDArray[np.float32], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `instance_map` where each pixel's end, int (2, h, w), is known."""
    y, x = ends
    clusters, _ = ndimage.label(np.hypot(*displacement) < WEAK_LENGTH)
    _, instances = np.unique(clusters[y, x], return_inverse=True)
    return instances.reshape(displacement.shape[1:])


def follow_displacement(displacement: NDArray[np.float32], n_steps: int) -> NDArray[np.int64]:
    """Return where each pixel ends, int (2, h, w) in (y, x), after n_steps along the field (2, h, w)."""
    height, width = displacement.shape[1:]
    # Bilinear in the cell that starts at a pixel: here + right·fx + (down + cross·fx)·fy
    padded = np.pad(displacement, ((0, 0), (0, 1), (0, 1)), mode="edge")
    here, right, down = padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1]
    cross = padded[:, 1:, 1:] - right - down + here
    terms = [term.reshape(2, -1) for term in (here, right - here, down - here, cross)]
    limit = np.array([[height - 1], [width - 1]], np.float32)
    position = np.indices((height, width), dtype=np.float32).reshape(2, -1)
    for _ in range(n_steps):
        cell = np.floor(position)
        fraction_y, fraction_x = position - cell
        pixel = (cell[0] * width + cell[1]).astype(np.int64)
        here, right, down, cross = (term.take(pixel, axis=1) for term in terms)
        position += here + right * fraction_x + (down + cross * fraction_x) * fraction_y
        np.clip(position, 0, limit, out=position)
    return np.rint(position).astype(np.int64).reshape(2, height, width)


def split_by_instance(response_map: NDArray[np.float32], instances: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the map cut into instances, (I, h, w): piece i is the map where instances == i, 0 elsewhere."""
    pieces: NDArray[np.float32] = response_map * (instances == np.arange(instances.max() + 1)[:, None, None])
    return pieces


def compute_pseudolabels(
    response_maps: NDArray[np.float32],
    boundary: NDArray[np.float32],
    displacement: NDArray[np.float32],
    image_hw: tuple[int, int],
    *,
    threshold: float,
    beta: float,
    n_steps: int,
    radius: int,
) -> NDArray[np.uint8]:
    """Return pseudo-label masks, uint8 {0, 1} (R, H, W), of the response maps of one image's refs.

    `response_maps` is float (R, any height, any width) in [0, 1]; `boundary` (h, w) and `displacement` (2, h,
    w) are IRNet's at stride 4. Each map is cut into instances, every piece walks, and a pixel is foreground
    where a piece's score, upsampled and divided by the ref's maximum, exceeds the threshold. Nothing is left
    to ignore (255).
    """
    # TRIS gives components under 1 % of the image the score 0, but its Step-2 sums all masks and never
    # reads the scores: small components stay.
    pieces = cut_into_pieces(response_maps, instance_map(displacement))
    walked = propagate(np.concatenate(pieces), boundary, beta=beta, n_steps=n_steps, radius=radius)
    return label_walked(walked, list(map(len, pieces)), image_hw, threshold)


def cut_into_pieces(response_maps: NDArray[np.float32], instances: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Return what walks of each of the maps (R, H, W): its pieces by instance, (I, h, w), without those that are 0."""
    maps = resize(response_maps, instances.shape, True)
    pieces = [split_by_instance(response_map, instances) for response_map in maps]
    # An instance without response stays 0 on the whole walk; most are.
    return [piece[piece.any(axis=(1, 2))] for piece in pieces]


def label_walked(
    walked: NDArray[np.float32], counts: Sequence[int], image_hw: tuple[int, int], threshold: float
) -> NDArray[np.uint8]:
    """Return each ref's mask, uint8 {0, 1} (R, H, W), of all pieces after the walk, the first counts[0] the first's."""
    per_ref = np.split(walked, np.cumsum(counts)[:-1])
    return np.stack([_mask(scores, image_hw, threshold) for scores in per_ref])


def _mask(scores: NDArray[np.float32], image_hw: tuple[int, int], threshold: float) -> NDArray[np.uint8]:
    """Return the mask, uint8 {0, 1} (H, W), of one ref's scores (I, h, w) at stride 4."""
    height, width = image_hw
    # Differs from TRIS: a ref without response gets an empty mask, not a division by 0.
    if not scores.any():
        return np.zeros(image_hw, np.uint8)
    upsampled_hw = (scores.shape[1] * STRIDE, scores.shape[2] * STRIDE)
    scores = resize(scores, upsampled_hw, align_corners=False)[:, :height, :width]
    found = scores.max(axis=0) > threshold * scores.max()
    return np.where(found, FOREGROUND, BACKGROUND).astype(np.uint8)


def resize(maps: NDArray[np.float32], hw: tuple[int, int], align_corners: bool) -> NDArray[np.float32]:
    """Return maps (R, h, w) brought to (R, *hw) by bilinear interpolation; align_corners as in torch."""
    rows = _interpolation(maps.shape[1], hw[0], align_corners)
    columns = _interpolation(maps.shape[2], hw[1], align_corners)
    return np.asarray(rows @ maps @ columns.T, np.float32)


def _interpolation(n_in: int, n_out: int, align_corners: bool) -> NDArray[np.float32]:
    """Return the linear interpolation from n_in to n_out samples as a matrix, float32 (n_out, n_in)."""
    if align_corners:
        position = np.linspace(0, n_in - 1, n_out)
    else:
        position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n_in)))
    return np.asarray(weights, np.float32)
