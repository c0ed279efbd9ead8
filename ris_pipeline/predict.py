"""Masks for one's own images and sentences, by a trained Step-1 or Step-2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.artifacts import MANIFEST
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.datasets.files import load_json
from ris_pipeline.datasets.images import to_pixels
from ris_pipeline.errors import RisError
from ris_pipeline.networks.build import build_step1, build_step2, config_from_manifest
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.responses import compute_map
from ris_pipeline.training.loop import WEIGHTS

MAP_FOREGROUND = 1e-9  # a response map's mask is where it exceeds this; TRIS, released evaluation


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one sentence refers to in an image of H×W pixels.

    `map` float32 (H, W) in [0, 1]: Step-1's response map, or the sigmoid of Step-2's logits.
    `mask` bool (H, W): the map exceeds 1e-9, or the logit 0; nowhere, where the network finds nothing.
    """

    map: NDArray[np.float32]
    mask: NDArray[np.bool_]


class Segmenter:
    """A trained network, in evaluation mode, to be called with an image and sentences."""

    def __init__(self, network: Step1 | Step2, input_size: int) -> None:
        self.network = network
        self.input_size = input_size

    @classmethod
    def load(cls, path: Path, device: torch.device | None = None) -> Self:
        """Return the Segmenter of a Step-1 or Step-2 artifact, on `device` (the CPU where it is None).

        Raises RisError where the folder is no such artifact, or its weights cannot be read.
        """
        manifest = load_json(path / MANIFEST)
        stage = manifest.get("stage")
        network: Step1 | Step2
        if stage == "step1":
            config = config_from_manifest(Step1Config, manifest)
            network = build_step1(config, path / WEIGHTS)
        elif stage == "step2":
            config = config_from_manifest(Step2Config, manifest)
            network = build_step2(config, path / WEIGHTS)
        else:
            raise RisError(f"{path}: an artifact of {stage}, which does not segment; give one of step1 or step2")
        return cls(network.to(device), config.input_size)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8], sentences: Sequence[str]) -> list[Prediction]:
        """Return a prediction for each sentence about an RGB image uint8 (H, W, 3), which is encoded once."""
        device = next(self.network.parameters()).device
        pixels = to_pixels(image, self.input_size)[None].to(device)
        tokens = self.network.clip.tokenize(sentences).to(device)
        maps, masks = self._segment(pixels, tokens, (image.shape[0], image.shape[1]))
        return [Prediction(*one) for one in zip(maps.cpu().numpy(), masks.cpu().numpy(), strict=True)]

    def _segment(self, pixels: Tensor, tokens: Tensor, image_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return maps float32 (N, H, W) and masks bool (N, H, W) of one image and N texts."""
        network = self.network
        if isinstance(network, Step1):
            # Each text alone with the image, as the official evaluation has it.
            grids = network.respond_each(network.encode_image(pixels), network.encode_text(tokens))
            maps = compute_map(grids, self.input_size, image_hw)
            return maps, maps > MAP_FOREGROUND
        logits = network.segment(network.encode_image(pixels), network.encode_text(tokens))
        assert isinstance(logits, Tensor)  # evaluation mode: one head
        logits = resize_logits(logits, image_hw)
        return logits.sigmoid(), logits > 0


def resize_logits(logits: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Return Step-2's logits float32 (n, H, W) at image size, of those at input size, float (n, S, S).

    Bilinear with align_corners=True, as the released evaluation resizes.
    """
    # Differs from TRIS: no division by the maximum, which is negative where nothing is found and flips the mask.
    return F.interpolate(logits.float()[:, None], size=image_hw, mode="bilinear", align_corners=True).squeeze(1)
