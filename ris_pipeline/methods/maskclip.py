"""MaskCLIP (ECCV 2022): dense CLIP without training, a sentence against the other texts at each place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import Rule
from ris_pipeline.methods.configs import MaskClipConfig
from ris_pipeline.methods.frozen_clip import FrozenClip, find_rivals
from ris_pipeline.networks.dense import dense_features

Places = tuple[Tensor, Tensor]  # features float (E, h, w) and keys float (C, h, w) of one image, each place of length 1


class MaskClip(FrozenClip):
    """The responder: the probability of a sentence at each place, among the rivals in its image and the background."""

    def __init__(self, config: MaskClipConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.denoising, self.smoothing = config.denoising, config.smoothing
        self.rule = Rule(
            via_input=True, activation="none", to_image="centres", normalise="max", threshold=config.threshold
        )

    def encode_images(self, pixels: Tensor) -> list[Places]:
        """Return the places of each image."""
        features, keys = dense_features(self.clip, self.clip.renormalise(pixels))
        return list(zip(F.normalize(features.float(), dim=1), F.normalize(keys.float(), dim=1), strict=True))

    def respond(self, image: Places, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return probabilities float32 (n, h, w)."""
        features, keys = (part.flatten(1) for part in image)
        classes, competing = self.list_classes(texts, find_rivals(texts, ref_ids))
        cosines = classes @ features
        probs = [self._compete(cosines[rows], keys) for rows in competing]
        return torch.stack(probs).view(len(texts), *image[0].shape[1:])

    def _compete(self, cosines: Tensor, keys: Tensor) -> Tensor:
        """Return float (hw,): the probability of the first of the texts, cosines float (C, hw)."""
        probs = (self.scale * cosines).softmax(dim=0)
        if self.denoising > 0:
            dropped = probs.amax(dim=1) < self.denoising
            dropped[0] = False  # what is asked for is there
            probs = (self.scale * cosines).masked_fill(dropped[:, None], -torch.inf).softmax(dim=0)
        if self.smoothing > 0:
            probs = smooth(probs, keys, self.smoothing)
        return probs[0]


def smooth(probs: Tensor, keys: Tensor, confidence: float) -> Tensor:
    """Return probabilities float (C, hw), those of unsure places replaced by what places with like keys have.

    `keys` float (K, hw), each of length 1. A place is unsure where its largest probability is below `confidence`. The
    weights are the cosines of the keys, negative ones left out, and add up to 1.
    """
    # Differs from MaskCLIP: not divided by their sum there, smoothed places are out of proportion to the others.
    weights = (keys.T @ keys).relu()
    smoothed = probs @ (weights / weights.sum(dim=1, keepdim=True)).T
    return torch.where(probs.amax(dim=0) < confidence, smoothed, probs)


def load(config: MaskClipConfig, device: torch.device) -> Responder:
    """Return its responder."""
    return MaskClip(config, device)
