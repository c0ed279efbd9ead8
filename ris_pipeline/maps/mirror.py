"""Two looks at an image: as it is, and in the mirror with "left" and "right" swapped in the words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ris_pipeline.maps.respond import ResponderWrapper

_SIDE = re.compile(r"\b(left|right)(?=(?:most|hand|side|er|ward|wards|s)?\b)", re.IGNORECASE)


class Mirrored(ResponderWrapper):
    """A responder whose score grids are the mean over an image and its mirror image."""

    def encode_images(self, pixels: Tensor) -> list[Any]:
        """Return the encodings of each of the images float32 (B, 3, S, S) and of its mirror image."""
        images, mirrored = (self._responder.encode_images(look) for look in (pixels, pixels.flip(-1)))
        return list(zip(images, mirrored, strict=True))

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return the encodings float (N, 2, …) of N sentences, and of them with the sides swapped."""
        swapped = [swap_sides(sentence) for sentence in sentences]
        return torch.stack([self._responder.encode_texts(texts) for texts in (sentences, swapped)], dim=1)

    def respond(self, image: Any, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return the mean score grids float32 (n, h, w) of n encoded sentences about one encoded image."""
        own, mirrored = (self._responder.respond(image[look], texts[:, look], ref_ids) for look in (0, 1))
        return (own + mirrored.flip(-1)) / 2


def swap_sides(sentence: str) -> str:
    """Return what the sentence is in the mirror: left for right, right for left.

    >>> from ris_pipeline.maps.mirror import swap_sides
    >>> swap_sides("Leftmost cup, right of the bright lamp")
    'Rightmost cup, left of the bright lamp'
    """
    return _SIDE.sub(_swap, sentence)


def _swap(found: re.Match[str]) -> str:
    word = found[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
