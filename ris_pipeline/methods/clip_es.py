"""CLIP-ES (CVPR 2023) without training: softmax Grad-CAM of a sentence among other texts, spread by attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import Rule
from ris_pipeline.methods.cam import compute_refined_cams
from ris_pipeline.methods.configs import ClipEsConfig
from ris_pipeline.methods.frozen_clip import FrozenClip, find_rivals
from ris_pipeline.networks.dense import OpenedImage, open_image


class ClipEs(FrozenClip):
    """The responder: the refined Grad-CAM of a sentence, with the rivals in its image and the background as classes."""

    def __init__(self, config: ClipEsConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.box_threshold = config.box_threshold
        # The map is compared with a background of 1 − map, already between 0 and 1.
        self.rule = Rule(
            via_input=False, activation="none", to_image="centres", normalise="none", threshold=config.threshold
        )

    def encode_images(self, pixels: Tensor) -> list[OpenedImage]:
        """Return each image opened in the last block."""
        return [open_image(self.clip, image[None]) for image in self.clip.renormalise(pixels)]

    def respond(self, image: OpenedImage, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return maps float32 (n, h, w) in [0, 1)."""
        classes, competing = self.list_classes(texts, find_rivals(texts, ref_ids))
        return compute_refined_cams(image, classes, competing, self.scale, self.box_threshold)


def load(config: ClipEsConfig, device: torch.device) -> Responder:
    """Return its responder."""
    return ClipEs(config, device)
