"""Several looks at an image: at the size that a network was trained on, and larger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.maps.respond import Responder, ResponderWrapper

FACTORS = (1.0, 1.2, 1.4)  # smaller does harm on shapes (docs/beyond.md)
_CELL = 32  # pixels: the coarsest level's, of which each size has whole ones


class AtSizes(ResponderWrapper):
    """A responder whose score grids are the mean over an image at several sizes."""

    def __init__(self, responder: Responder) -> None:
        super().__init__(responder)
        self._sizes = [max(round(self.input_size * factor / _CELL), 1) * _CELL for factor in FACTORS]

    def encode_images(self, pixels: Tensor) -> list[Any]:
        """Return the encodings of each of the images float32 (B, 3, S, S) at all sizes, S's own among them."""
        looks = [self._responder.encode_images(_resize(pixels, (size, size))) for size in self._sizes]
        return list(zip(*looks, strict=True))

    def respond(self, image: Any, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return the mean score grids float32 (n, h, w) of n encoded sentences about one encoded image."""
        grids = [self._responder.respond(look, texts, ref_ids).float() for look in image]
        return torch.stack([_resize(grid[:, None], self.grid_hw)[:, 0] for grid in grids]).mean(dim=0)


def _resize(pixels: Tensor, hw: tuple[int, int]) -> Tensor:
    shrinks = hw[0] < pixels.shape[-2]
    return pixels if pixels.shape[-2:] == hw else F.interpolate(pixels, hw, mode="bilinear", antialias=shrinks)
