"""The dense CRF on CUDA: lattice and filtering of `crf`, for all label problems of an image at once."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ris_pipeline.refine import crf
from ris_pipeline.refine.crf import N_ITERATIONS, PROBLEMS_AT_ONCE, CrfSettings, Refine, odds_of_labels


def refine_labels(
    image: NDArray[np.uint8], hard_labels: NDArray[np.uint8], settings: CrfSettings, device: torch.device
) -> NDArray[np.uint8]:
    """Return what `crf.refine_labels` does, uint8 {0, 1} (M, H, W), but for odds within rounding of a tie."""
    unary = torch.from_numpy(odds_of_labels(hard_labels)).to(device)
    odds = log_odds(torch.from_numpy(image).to(device), unary, settings)
    labels: NDArray[np.uint8] = (odds > 0).to(torch.uint8).cpu().numpy()
    return labels


def refine_on(device: torch.device) -> Refine:
    """Return the dense CRF of hard labels for a device: this one on CUDA, else the processor's."""
    return partial(refine_labels, device=device) if device.type == "cuda" else crf.refine_labels


def log_odds(image: Tensor, unary: Tensor, settings: CrfSettings) -> Tensor:
    """Return `crf.DenseCrf.log_odds`, float32 (M, H, W), of an image uint8 (H, W, 3) and the odds before, (M, H, W)."""
    height, width = image.shape[:2]
    y, x = torch.meshgrid(*(torch.arange(n, device=image.device) for n in (height, width)), indexing="ij")
    place = torch.stack([x, y]).flatten(1).float()
    rgb = image.reshape(-1, 3).T.float()
    kernels = (
        Kernel(place / settings.gaussian_sigma_xy, settings.gaussian_weight),
        Kernel(
            torch.cat([place / settings.bilateral_sigma_xy, rgb / settings.bilateral_sigma_rgb]),
            settings.bilateral_weight,
        ),
    )
    found = []
    for problems in torch.split(unary.flatten(1), PROBLEMS_AT_ONCE):
        own = problems.T  # (HW, M): problems are columns
        odds = own
        for _ in range(N_ITERATIONS):
            difference = torch.tanh(odds / 2)
            odds = own + kernels[0].filter(difference) + kernels[1].filter(difference)
        found.append(odds.T)
    return torch.cat(found).view_as(unary)


class Kernel:
    """weight · N^-½ K N^-½ of a Gaussian kernel K over features float32 (d, N), as `crf.NormalizedKernel`."""

    def __init__(self, features: Tensor, weight: float) -> None:
        self.weight = weight
        self._vertex, self._barycentric, self._neighbours = _build_lattice(features)
        ones = torch.ones(features.shape[1], 1, device=features.device)
        self._scale = torch.ones_like(ones)
        self._scale = self._filter(ones).rsqrt()

    def filter(self, values: Tensor) -> Tensor:
        """Return the filtered values, float32 (N, M), one column a problem."""
        return self.weight * self._filter(values)

    def _filter(self, values: Tensor) -> Tensor:
        values = self._scale * values
        # The last row stands for the vertices that are not there, and stays 0.
        vertices = values.new_zeros(self._neighbours.shape[2] + 1, values.shape[1])
        for vertex, share in zip(self._vertex, self._barycentric, strict=True):
            vertices.index_add_(0, vertex, share[:, None] * values)
        for before, behind in self._neighbours:
            vertices[:-1] = vertices[:-1] + 0.5 * (vertices[before] + vertices[behind])
        found = sum(
            share[:, None] * vertices[vertex] for vertex, share in zip(self._vertex, self._barycentric, strict=True)
        )
        assert isinstance(found, Tensor)
        return self._scale * found


def _build_lattice(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `crf.build_lattice` does, as numbers of rows.

    Of each point the vertices of its simplex, int64 (d+1, N), and its weights on them, float32 (d+1, N); the neighbours
    of each vertex along each axis, before and behind it, int64 (d+1, 2, V), V for one that is not there.
    """
    remainder_zero, rank, barycentric = _enclosing_simplex(features)
    n_axes = len(rank)
    spans = remainder_zero[:-1].amax(dim=1) - remainder_zero[:-1].amin(dim=1) + 4 * n_axes
    first, last = spans.new_ones(1), spans.new_zeros(1)
    strides = torch.cat([first, spans[:-1].cumprod(0), last])

    stride_of_rank = torch.empty_like(rank).scatter_(0, rank, strides[:, None].expand_as(rank))
    keys = [(strides[:, None] * remainder_zero).sum(dim=0)]
    for k in range(1, n_axes):
        keys.append(keys[-1] + strides.sum() - n_axes * stride_of_rank[n_axes - k])
    vertex_keys, vertex = torch.unique(torch.stack(keys), return_inverse=True)

    steps = n_axes * strides - strides.sum()
    neighbours = [torch.stack([_find(vertex_keys, vertex_keys + sign * step) for sign in (-1, 1)]) for step in steps]
    return vertex, barycentric, torch.stack(neighbours)


def _find(keys: Tensor, wanted: Tensor) -> Tensor:
    """Return the places int64 (n,) of the wanted keys among the sorted ones, len(keys) for those that are not there."""
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, place, len(keys))


def _enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each point's remainder-0 vertex, coordinate ranks and barycentric weights, all (d+1, N), as `crf`."""
    d = len(features)
    n_axes = d + 1
    lift = np.triu(np.ones((n_axes, d)))
    lift[np.arange(1, n_axes), np.arange(d)] = -np.arange(1, n_axes)
    lift *= np.sqrt(2 / 3) * n_axes / np.sqrt(np.arange(1, n_axes) * np.arange(2, n_axes + 1))
    # Not a matrix product, which the device might round to ten bits.
    lifted = (torch.from_numpy(lift.astype(np.float32)).to(features.device)[:, :, None] * features).sum(dim=1)

    rounded = torch.round(lifted / n_axes)
    remainder_zero = n_axes * rounded.long()
    rank = (lifted - remainder_zero).argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    rank += rounded.sum(dim=0).long()
    step_back = n_axes * ((rank < 0).long() - (rank > d).long())
    rank += step_back
    remainder_zero += step_back

    by_rank = torch.empty_like(lifted).scatter_(0, rank, (lifted - remainder_zero) / n_axes).flip(0)
    barycentric = by_rank - by_rank.roll(1, dims=0)
    barycentric[0] += 1
    return remainder_zero, rank, barycentric
