"""IRNet's field and walk on CUDA: what `instances` and `affinity` compute on a processor, for all refs of an image."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ris_pipeline.arrays import Maps
from ris_pipeline.refine.affinity import NEGLIGIBLE, PathIndex
from ris_pipeline.refine.instances import N_STEPS, cut_into_pieces, find_instances


def walk_pieces(
    response_maps: Maps, boundary: Tensor, displacement: Tensor, *, beta: float, n_steps: int, radius: int
) -> tuple[Maps, list[int]]:
    """Return the pieces of all maps after the walk, float32 (ΣI, h, w), and how many are each map's.

    `response_maps` float32 (R, H, W) is of one image; boundary (h, w) and displacement (2, h, w) are IRNet's.
    """
    ends = follow_displacement(displacement, N_STEPS).cpu().numpy()
    pieces = cut_into_pieces(response_maps, find_instances(displacement.cpu().numpy(), ends))
    started = torch.from_numpy(np.concatenate(pieces)).to(boundary.device)
    walked: Maps = propagate(started, boundary, beta=beta, n_steps=n_steps, radius=radius).cpu().numpy()
    return walked, list(map(len, pieces))


def follow_displacement(displacement: Tensor, n_steps: int) -> Tensor:
    """Return where each pixel ends, int64 (2, h, w) in (y, x), after n_steps along the field float32 (2, h, w)."""
    height, width = displacement.shape[1:]
    last = torch.tensor([height - 1, width - 1], device=displacement.device, dtype=displacement.dtype)
    scale = 2 / last.clamp(min=1)  # grid_sample counts from -1 to 1, x before y
    y, x = torch.meshgrid(*(torch.arange(n, device=displacement.device) for n in (height, width)), indexing="ij")
    position = torch.stack([y, x], dim=-1).to(displacement.dtype)
    for _ in range(n_steps):
        where = (position * scale - 1).flip(-1)[None]
        here = F.grid_sample(displacement[None], where, padding_mode="border", align_corners=True)[0]
        position = torch.minimum((position + here.permute(1, 2, 0)).clamp(min=0), last)
    return position.round().long().permute(2, 0, 1)


def propagate(maps: Tensor, boundary: Tensor, *, beta: float, n_steps: int, radius: int) -> Tensor:
    """Return (maps · (1 − boundary)) · T^n_steps, float32 (R, h, w), as `affinity.propagate`, on the maps' device."""
    height, width = boundary.shape
    neighbours, weights = _compute_bands(boundary, beta, radius)
    walked = (maps * (1 - boundary)).reshape(len(maps), height * width)
    for _ in range(n_steps):
        walked = torch.einsum("rkn,kn->rn", walked[:, neighbours], weights)
    return walked.reshape(maps.shape)


def _compute_bands(boundary: Tensor, beta: float, radius: int) -> tuple[Tensor, Tensor]:
    """Return from where each pixel gets its next value, int64 (K, hw), and by what share of it, float32 (K, hw).

    The share of pixel i in pixel j is T_ij = A_ij / Σ_i A_ij, as in `affinity.compute_transition`; A is symmetric.
    """
    height, width = boundary.shape
    index = PathIndex(radius)
    margin, offsets = index.margin, index.offsets.tolist()
    edges = F.pad(boundary, (margin, margin, 0, margin), value=1.0)
    ahead = torch.stack([
        1 - torch.stack([edges[dy : dy + height, margin + dx : margin + dx + width] for dy, dx in path]).amax(dim=0)
        for path in index.paths
    ]) ** beta  # fmt: skip
    ahead[ahead < NEGLIGIBLE] = 0
    # Of each pair its other end: A is symmetric.
    padded = F.pad(ahead, (margin, margin, margin, 0))
    behind = torch.stack([
        pairs[margin - dy : margin - dy + height, margin - dx : margin - dx + width]
        for pairs, (dy, dx) in zip(padded, offsets, strict=True)
    ])  # fmt: skip
    weights = torch.cat([ahead, behind, torch.ones_like(boundary)[None]])
    steps = torch.tensor([*offsets, *((-dy, -dx) for dy, dx in offsets), (0, 0)], device=boundary.device)
    # A pair that leaves the image has the weight 0: whichever pixel stands for its other end.
    y = (torch.arange(height, device=boundary.device) + steps[:, :1]).clamp(0, height - 1)
    x = (torch.arange(width, device=boundary.device) + steps[:, 1:]).clamp(0, width - 1)
    neighbours = y[:, :, None] * width + x[:, None, :]
    return neighbours.flatten(1), (weights / weights.sum(dim=0)).flatten(1)
