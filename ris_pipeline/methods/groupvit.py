"""GroupViT (CVPR 2022), fine-tuned on images and sentences: how much each patch belongs to what the sentence says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import Rule
from ris_pipeline.methods.configs import GroupVitConfig
from ris_pipeline.methods.responder import NetworkResponder
from ris_pipeline.networks.clip import encode_each
from ris_pipeline.networks.groupvit import GroupVit, GroupVitSizes, build_groupvit
from ris_pipeline.networks.weights.clip_weights import load_clip
from ris_pipeline.networks.weights.tensors import load_weights
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import Task
from ris_pipeline.training.losses import contrastive_loss
from ris_pipeline.training.sharing import gather_list, gather_rows

LARGEST_SCALE = math.log(100)  # GroupViT


def build(config: GroupVitConfig, weights: Path | None) -> GroupVit:
    """Return the network, of trained weights or with those that the configuration names."""
    sizes = GroupVitSizes(
        side=config.side, patch=config.patch, width=config.width, heads=config.heads, depth=config.depth,
        n_first_groups=config.n_first_groups, n_groups=config.n_groups, text_width=config.text_width,
        text_heads=config.text_heads, text_layers=config.text_layers, n_tokens=config.n_tokens,
        projection=config.projection, embed_dim=config.embed_dim,
    )  # fmt: skip
    is_trained = weights is not None
    clip = None
    if config.text_encoder == "clip":
        clip = load_clip(config.clip, None if is_trained else config.clip_weights)
    network = build_groupvit(sizes, None if is_trained else config.weights, clip)
    if weights is not None:
        load_weights(network, weights)
    return network


def build_task(network: GroupVit, config: GroupVitConfig) -> GroupVitTask:
    """Return the task that fine-tunes it."""
    return GroupVitTask(network, config)


def plan(dataset: Dataset, config: GroupVitConfig, seed: int) -> Plan:
    """Return batches of one ref an image: the loss tells whole images apart, not what stands in one."""
    return Plan(dataset, config.batch_size, 1, 0, seed, distinct_images=True)


def wrap(network: GroupVit, config: GroupVitConfig) -> Responder:
    """Return a trained network as a responder."""
    return GroupVitResponder(network, config)


class GroupVitTask(Task[Batch]):
    """Symmetric InfoNCE of the images of a batch and their sentences (GroupViT), by AdamW."""

    network: GroupVit

    def __init__(self, network: GroupVit, config: GroupVitConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.poly_power = config.poly_power
        self.clip_grad = config.clip_grad

    def optimizer(self) -> Optimizer:
        """Return AdamW; matrices alone decay."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # One fused kernel: several times as fast over the token embedding.
        return torch.optim.AdamW(groups, lr=self.config.lr, fused=self.device.type in ("cpu", "cuda"))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch of different images; those that are said the same of are no negatives."""
        batch, network = batch.to(self.device), self.network
        sentences = [draw.sentence for draw in batch.draws]
        # The mean is taken before the projection, which is not linear.
        image = network.project(network.group(batch.pixels)[0].mean(dim=1))
        text = encode_each(lambda texts: network.encode_text(network.tokenize(texts).to(self.device)), sentences)
        (image, _), (text, _) = gather_rows(image.float()), gather_rows(text.float())
        scale = network.model.logit_scale.exp()
        return {"loss": contrastive_loss(image, text, scale, gather_list(sentences)[0])}

    @torch.no_grad()
    def after_step(self, step: int, optimizer: Optimizer) -> None:
        """Keep the scale below its limit."""
        self.network.model.logit_scale.clamp_(max=LARGEST_SCALE)


class GroupVitResponder(NetworkResponder):
    """For each patch the mean of its groups' likeness to the sentence, weighed by how much it belongs to each."""

    network: GroupVit

    def __init__(self, network: GroupVit, config: GroupVitConfig) -> None:
        super().__init__(network, network, config.input_size)
        # A single sentence has nothing to compete with: the middle between the least and the most alike stands for it.
        self.rule = Rule(
            via_input=False, activation="none", to_image="centres", normalise="minmax", threshold=config.threshold
        )

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Height and width in patches."""
        side = self.input_size // self.network.patch
        return side, side

    def encode_images(self, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return of each image the segments' features float (G, E) and the shares float (G, h, w)."""
        segments, shares = self.network.group(pixels)
        return list(zip(self.network.project(segments), shares, strict=True))

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return features float (N, E)."""
        return self.network.encode_text(self.network.tokenize(sentences).to(self.device))

    def respond(self, image: tuple[Tensor, Tensor], texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return Σ_g share_g · cos(segment_g, sentence), float32 (n, h, w) in [−1, 1]."""
        features, shares = image
        return torch.einsum("ng,ghw->nhw", texts @ features.T, shares).float()
