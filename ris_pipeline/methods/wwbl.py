"""WWbL† (NeurIPS 2022): a mask that is like CLIP's relevance map, and that keeps what the sentence says and no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import Rule
from ris_pipeline.methods.configs import WWbLConfig
from ris_pipeline.methods.responder import NetworkResponder
from ris_pipeline.networks.clip import Clip, encode_each
from ris_pipeline.networks.relevance import compute_relevance
from ris_pipeline.networks.vgg import build_vgg
from ris_pipeline.networks.weights.clip_weights import load_clip
from ris_pipeline.networks.weights.tensors import load_weights
from ris_pipeline.networks.wwbl import WWbL
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import Task
from ris_pipeline.training.sharing import weight_of


def compute_targets(relevance: Tensor, clip_size: int, input_size: int) -> Tensor:
    """Return targets float (n, S, S) in [0, 1] of relevances float (n, h, w).

    Each is brought to the size that the CLIP reads, stretched from 0 to 1, and brought to the input's.
    """
    maps = F.interpolate(relevance[:, None], (clip_size, clip_size), mode="bilinear", align_corners=False)
    maps = maps - maps.amin(dim=(2, 3), keepdim=True)
    # Differs from WWbL: a map without relevance is 0 everywhere, not NaN.
    maps = maps / maps.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)
    return F.interpolate(maps, (input_size, input_size), mode="bilinear", align_corners=True)[:, 0]


def mask_losses(masks: Tensor, pixels: Tensor, aux: Clip, texts: Tensor) -> dict[str, Tensor]:
    """Return what the frozen CLIP says of masks, float scalars by name.

    fg = 1 − cos(aux(I·M), t),   bg = |cos(aux(I·(1 − M)), t)|,   area = mean M, the means of n pairs.
    `masks` float (n, s, s) in [0, 1], `pixels` float (n, 3, s, s) at the size that `aux` reads, `texts` float (n, E).
    Pixels that are masked out are 0: the mean colour of what the CLIP was trained on.
    """
    M = masks[:, None]
    # Differs from WWbL: the released code takes the mean over all images and all texts of the batch.
    fg, bg = (F.cosine_similarity(aux.encode_image(kept * pixels).float(), texts, dim=-1) for kept in (M, 1 - M))
    return {"fg": (1 - fg).mean(), "bg": bg.abs().mean(), "area": M.mean()}


class WWbLTask(Task[Batch]):
    """The distance to the frozen CLIP's relevance map, and what the CLIP sees inside and outside of the mask."""

    network: WWbL

    def __init__(self, network: WWbL, aux: Clip, config: WWbLConfig) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.aux = aux.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.config = config

    def train(self, mode: bool = True) -> WWbLTask:
        """Return self in training (or evaluation) mode; the frozen CLIP is never in training mode."""
        super().train(mode)
        self.aux.eval()
        return self

    def optimizer(self) -> torch.optim.Optimizer:
        """Return SGD with momentum on all but the text encoder."""
        c = self.config
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, c.lr, momentum=c.momentum, weight_decay=c.weight_decay)

    def rate(self, step: int, n_steps: int) -> float:
        """Return 1: the learning rate stays."""
        return 1.0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses relevance, fg, bg, area and their weighted sum."""
        batch = batch.to(self.device)
        sentences = [draw.sentence for draw in batch.draws]
        seen = self.aux.renormalise(_resize(batch.pixels, self.aux.image_size))
        with torch.no_grad():
            read = encode_each(lambda texts: _encode(self.network.clip, texts, self.device), sentences)
            texts = encode_each(lambda texts: _encode(self.aux, texts, self.device), sentences)
            with torch.autocast(self.device.type, enabled=False):
                relevance = compute_relevance(self.aux, seen, batch.image_of, texts)
        places = self.network.encode_image(batch.pixels)[batch.image_of]
        logits = self.network.decode(places, self.network.encode_text(read)).float()
        masks = _resize(logits[:, None], self.config.input_size).sigmoid()[:, 0]
        targets = compute_targets(relevance, self.aux.image_size, self.config.input_size)
        small = _resize(masks[:, None], self.aux.image_size)[:, 0]
        losses = {
            "relevance": F.mse_loss(masks, targets),
            **mask_losses(small, seen[batch.image_of], self.aux, texts),
        }
        of_this_part = weight_of(len(sentences), self.device)
        losses = {name: of_this_part * loss for name, loss in losses.items()}
        c = self.config
        weights = {"relevance": c.weight_relevance, "fg": c.weight_fg, "bg": c.weight_bg, "area": c.weight_area}
        return {"loss": torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(), **losses}


class WWbLResponder(NetworkResponder):
    """The mask's logits at stride 2."""

    network: WWbL

    def __init__(self, network: WWbL, config: WWbLConfig) -> None:
        super().__init__(network, network.clip, config.input_size)
        self.rule = Rule(
            via_input=False, activation="sigmoid", to_image="corners", normalise="max", threshold=config.threshold
        )

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Height and width of the stride-2 grid."""
        return 4 * (self.input_size // 8), 4 * (self.input_size // 8)

    def encode_images(self, pixels: Tensor) -> list[Tensor]:
        """Return the places float (1, C, S/8, S/8) of each image."""
        return list(torch.split(self.network.encode_image(pixels), 1))

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return the sentences float (N, C)."""
        return self.network.encode_text(_encode(self.network.clip, sentences, self.device))

    def respond(self, image: Tensor, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return the logits float32 (n, h, w) of one image and n sentences."""
        return self.network.decode(image.expand(len(texts), -1, -1, -1), texts).float()


def build(config: WWbLConfig, weights: Path | None) -> WWbL:
    """Return the network of the weights in a file, or with pretrained VGG-16 and CLIP."""
    is_trained = weights is not None
    clip = load_clip(config.clip, None if is_trained else config.clip_weights)
    network = WWbL(clip, build_vgg("vgg16", config.width, None if is_trained else config.vgg_weights))
    if weights is not None:
        load_weights(network, weights)
    return network


def build_task(network: WWbL, config: WWbLConfig) -> WWbLTask:
    """Return the task of the network, with the frozen CLIP of the configuration."""
    return WWbLTask(network, load_clip(config.aux_clip, config.aux_weights), config)


def plan(dataset: Dataset, config: WWbLConfig, seed: int) -> Plan:
    """Return the plan of its batches."""
    return Plan(dataset, config.batch_size, config.refs_per_image, n_negatives=0, seed=seed)


def wrap(network: WWbL, config: WWbLConfig) -> Responder:
    """Return a trained network as a responder."""
    return WWbLResponder(network, config)


def _resize(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=True)


def _encode(clip: Clip, sentences: Sequence[str], device: torch.device) -> Tensor:
    return clip.encode_text(clip.tokenize(sentences).to(device)).float()
