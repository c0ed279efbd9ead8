"""TRIS (ICCV 2023): its two networks as responders, and what its registry entry needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.datasets.records import Dataset
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import RESPONSE, SEGMENTATION
from ris_pipeline.methods.responder import NetworkResponder
from ris_pipeline.networks.load import (
    aux_from_config,
    freeze,
    step1_from_config,
    step2_from_config,
)
from ris_pipeline.networks.parts.levels import Levels
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.networks.weights.released import read_released
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.tasks import Step1Task


class Step1Responder(NetworkResponder):
    """Step-1: a grid at stride 32, each sentence alone with its image, as in the official evaluation."""

    network: Step1
    rule = RESPONSE

    def __init__(self, network: Step1, input_size: int, *, centred: bool = False) -> None:
        """`centred`: only the part of the scores that exceeds their mean over the image counts."""
        super().__init__(network, network.clip, input_size)
        self.centred = centred

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Height and width of the stride-32 grid."""
        side = self.network.grid_side(self.input_size)
        return side, side

    def encode_images(self, pixels: Tensor) -> list[Tensor]:
        """Return V float (1, C, h, w) of each image."""
        return list(torch.split(self.network.encode_image(pixels), 1))

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return T float (N, C)."""
        return self.network.encode_text(self.network.clip.tokenize(sentences))

    def respond(self, image: Tensor, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return S float32 (n, h, w) of one image's V and n rows of T."""
        S = self.network.respond_each(image, texts).float()
        return S - S.mean(dim=(1, 2), keepdim=True) if self.centred else S


class Step2Responder(NetworkResponder):
    """Step-2: logits at input size."""

    network: Step2
    rule = SEGMENTATION

    def __init__(self, network: Step2, input_size: int) -> None:
        super().__init__(network, network.clip, input_size)

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Height and width of its input."""
        return self.input_size, self.input_size

    def encode_images(self, pixels: Tensor) -> list[Levels]:
        """Return c1..c4, float (1, C_i, H/s, W/s), of each image."""
        c1, c2, c3, c4 = (torch.split(level, 1) for level in self.network.encode_image(pixels))
        return list(zip(c1, c2, c3, c4, strict=True))

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return the words float (N, T, word_width)."""
        return self.network.encode_text(self.network.clip.tokenize(sentences).to(self.device))

    def respond(self, image: Levels, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return the logits float32 (n, S, S) of one image's levels and the words of n sentences."""
        return self.network.segment(image, texts).float()


def build(config: Step1Config, weights: Path | None) -> Step1:
    """Return Step-1, of the weights in a file or with the encoders' of the configuration."""
    return step1_from_config(config, weights)


def build_task(network: Step1, config: Step1Config) -> Step1Task:
    """Return Step-1's task, with the frozen CLIP of the configuration."""
    return Step1Task(network, aux_from_config(config), config)


def plan(dataset: Dataset, config: Step1Config, seed: int) -> Plan:
    """Return the plan of Step-1's batches."""
    return Plan(dataset, config.batch_size, config.refs_per_image, config.n_negatives, seed)


def wrap(network: Step1, config: Step1Config) -> Responder:
    """Return a trained Step-1 as a responder."""
    return Step1Responder(network, config.input_size)


def load_released(file: Path, device: torch.device) -> Responder:
    """Return the network of a checkpoint that TRIS released (.pth); RisError where it is none."""
    released = read_released(file)
    config = released.config
    if isinstance(config, Step1Config):
        return Step1Responder(freeze(step1_from_config(config, file), device), config.input_size)
    if isinstance(config, Step2Config):
        return Step2Responder(freeze(step2_from_config(config, file), device), config.input_size)
    raise RisError(f"{file}: a checkpoint of kind {released.kind}, which does not segment; give one of TRIS")


def load_untrained(config: Step1Config, device: torch.device) -> Responder:
    """Return Step-1 before any training: its maps are those of its CLIP (MaskCLIP, ECCV 2022).

    A cosine of CLIP's features is positive nearly everywhere; training is what gives the 0 its meaning. So the map is
    what exceeds the mean over the image. Raises RisError where the configuration starts the projections at random.
    """
    if not config.project_from_clip:
        raise RisError("an untrained Step-1 gives maps of CLIP only with project_from_clip; train it first")
    return Step1Responder(freeze(step1_from_config(config), device), config.input_size, centred=True)
