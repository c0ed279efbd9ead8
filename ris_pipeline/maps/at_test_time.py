"""Test-time options that change how a network is asked: several sizes, the mirror image, drawn sentences as rivals.

Those that change its masks afterwards are `maps.compete.separate_masks` and `refine.masks.clean_masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ris_pipeline.errors import RisError
from ris_pipeline.maps.compete import find_drawn_rivals, let_compete
from ris_pipeline.maps.mirror import Mirrored
from ris_pipeline.maps.respond import Responder, ResponderWrapper
from ris_pipeline.maps.rule import compute_map, show_map
from ris_pipeline.maps.sizes import AtSizes

N_DRAWN = 64  # sentences of the train split


def apply_test_time(responder: Responder, options: Collection[str], draw: Callable[[], list[str]]) -> Responder:
    """Return the responder with those of the `options` (`scoring.rows.TEST_TIME`) that change how it is asked.

    `draw` returns the drawn sentences; it is called for the option "rivals" only.
    """
    if "sizes" in options:
        responder = AtSizes(responder)
    if "mirror" in options:
        responder = Mirrored(responder)
    return AgainstDrawn(responder, draw()) if "rivals" in options else responder


class AgainstDrawn(ResponderWrapper):
    """A responder whose score grids are at most 0 where a drawn sentence about something else responds more."""

    def __init__(self, responder: Responder, sentences: list[str]) -> None:
        """`sentences`: those that compete. Raises RisError for a responder of which a score of 0 is not nothing."""
        if responder.rule.activation not in ("relu", "logit", "clamp"):
            raise RisError(
                "--rivals is for networks whose score of 0 means nothing, as Step-1's and Step-2's; leave it out"
            )
        super().__init__(responder)
        with torch.no_grad():
            self._drawn = responder.encode_texts(sentences)

    def respond(self, image: Any, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return the score grids float32 (n, h, w) of n encoded sentences about one encoded image."""
        grids = self._responder.respond(image, texts, ref_ids).float()
        own, drawn = self._show(grids), self._show(self._responder.respond(image, self._drawn).float())
        # A drawn sentence that is one of these takes nothing: its map is the same.
        is_lost = (let_compete(own, drawn, find_drawn_rivals(own, drawn)) == 0) & (own > 0)
        return torch.where(torch.from_numpy(is_lost).to(grids.device), grids.clamp(max=0), grids)

    def _show(self, grids: Tensor) -> np.ndarray:
        maps = compute_map(grids, self.rule, self.input_size, self.grid_hw)
        shown: np.ndarray = show_map(maps, self.rule).cpu().numpy()
        return shown
