"""AMR (AAAI 2022): two branches' class activation maps, made alike, their mean the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import Rule
from ris_pipeline.methods.configs import AmrConfig
from ris_pipeline.methods.responder import NetworkResponder
from ris_pipeline.networks.amr import Amr, activate, classify
from ris_pipeline.networks.clip import encode_each
from ris_pipeline.networks.load import load_stages
from ris_pipeline.networks.weights.clip_weights import load_clip
from ris_pipeline.networks.weights.tensors import load_weights
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import Task
from ris_pipeline.training.losses import find_equal
from ris_pipeline.training.sharing import gather_list, gather_rows, weight_of


def build(config: AmrConfig, weights: Path | None) -> Amr:
    """Return the network: all of it from a file, or with the ResNets and the CLIP that the configuration names."""
    is_new = weights is None
    spotlight, compensation = (
        load_stages(config.backbone, config.backbone_weights if is_new else None) for _ in range(2)
    )
    clip = load_clip(config.clip, config.clip_weights if is_new else None)
    network = Amr(spotlight, compensation, clip, config.hidden)
    if weights is not None:
        load_weights(network, weights)
    return network


def build_task(network: Amr, config: AmrConfig) -> AmrTask:
    """Return the task that trains one branch after the other."""
    return AmrTask(network, config)


def plan(dataset: Dataset, config: AmrConfig, seed: int) -> Plan:
    """Return batches of one ref an image: another ref's sentence may well fit the same image."""
    return Plan(dataset, config.batch_size, 1, 0, seed, distinct_images=True)


def wrap(network: Amr, config: AmrConfig) -> Responder:
    """Return a trained network as a responder."""
    return AmrResponder(network, config)


class AmrTask(Task[Batch]):
    """Plain CAM training of the spotlight branch, then the compensation branch beside it, without momentum (AMR).

    Every image of a batch is classified by every sentence of it. In the second part the loss is
    ½·cls₁ + ½·cls₂ + λ·mean|CAM₁ − CAM₂|, in which the spotlight's features and the sentences' weights are fixed: its
    head alone still learns, and from the last term only.
    """

    network: Amr

    def __init__(self, network: Amr, config: AmrConfig) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.config = config
        self.poly_power = config.poly_power
        self.is_plain = True  # whether the step is one of plain CAM training

    def optimizer(self) -> Optimizer:
        """Return SGD; the heads' group is the last one, its rate that of the second part."""
        c, network = self.config, self.network
        heads = (network.spotlight_head, network.compensation_head, network.lan_project)
        groups = [
            {"params": [p for p in network.spotlight.parameters() if p.requires_grad], "lr": c.lr},
            {"params": [p for p in network.compensation.parameters() if p.requires_grad], "lr": c.new_factor * c.lr},
            {"params": [p for head in heads for p in head.parameters()], "lr": c.lr},
        ]
        return torch.optim.SGD(groups, weight_decay=c.weight_decay)

    def rate(self, step: int, n_steps: int) -> float:
        """Return the polynomial decay of the part that the step is in."""
        n_plain = self._n_plain(n_steps)
        return super().rate(*((step, n_plain) if step < n_plain else (step - n_plain, n_steps - n_plain)))

    def before_step(self, step: int, n_steps: int, optimizer: Optimizer) -> None:
        """Choose the part; the heads are new in the first one and learn faster there."""
        self.is_plain = step < self._n_plain(n_steps)
        if self.is_plain:
            optimizer.param_groups[-1]["lr"] *= self.config.new_factor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, and in the second part its terms cls1, cls2 and recalibration."""
        batch, network = batch.to(self.device), self.network
        sentences = [draw.sentence for draw in batch.draws]
        own = encode_each(lambda texts: network.encode_text(network.clip.tokenize(texts).to(self.device)), sentences)
        T, first = gather_rows(own)  # of the whole batch
        # A sentence that another ref of the batch has as well is true of both images.
        targets = find_equal(gather_list(sentences)[0]).to(self.device)[first : first + len(own)].float()
        weight = weight_of(len(own), self.device)
        if self.is_plain:
            V = network.encode_image(batch.pixels, "spotlight")
            return {"loss": weight * F.binary_cross_entropy_with_logits(classify(V, T).float(), targets)}
        with torch.no_grad():
            features = network.spotlight.stages(batch.pixels)[-1]
        # Both branches' classifiers have it: what the second learns would undo what the first has.
        T, own = T.detach(), own.detach()
        V1, V2 = network.spotlight_head(features), network.encode_image(batch.pixels, "compensation")
        cls1 = weight * F.binary_cross_entropy_with_logits(classify(V1, T).detach().float(), targets)
        cls2 = weight * F.binary_cross_entropy_with_logits(classify(V2, T).float(), targets)
        # Differs from AMR: there the maps of a batch's first image and of its second one, mirrored, are added and
        # compared; the pair of an image and its mirror image, for which that is meant, exists only in its inference.
        recalibration = weight * (activate(V1, own) - activate(V2, own)).abs().float().mean()
        loss = 0.5 * cls1 + 0.5 * cls2 + self.config.weight_recalibration * recalibration
        return {"loss": loss, "cls1": cls1, "cls2": cls2, "recalibration": recalibration}

    def _n_plain(self, n_steps: int) -> int:
        return n_steps * self.config.cam_epochs // self.config.epochs


class AmrResponder(NetworkResponder):
    """The mean of both branches' class activation maps, each divided by its maximum."""

    network: Amr

    def __init__(self, network: Amr, config: AmrConfig) -> None:
        super().__init__(network, network.clip, config.input_size)
        # The mean is compared as it is: its own maximum is 1 only where both branches agree.
        self.rule = Rule(
            via_input=False, activation="none", to_image="centres", normalise="none", threshold=config.threshold
        )

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Height and width of the branches' last level."""
        side = -(-self.input_size // self.network.spotlight.stage_strides[-1])
        return side, side

    def encode_images(self, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return V float (1, C, h, w) of both branches for each image."""
        spotlight, compensation = (
            torch.split(self.network.encode_image(pixels, branch), 1) for branch in ("spotlight", "compensation")
        )
        return list(zip(spotlight, compensation, strict=True))

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return T float (N, C)."""
        return self.network.encode_text(self.network.clip.tokenize(sentences).to(self.device))

    def respond(self, image: tuple[Tensor, Tensor], texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return maps float32 (n, h, w) in [0, 1); 0 where both branches say no."""
        cams = torch.stack([activate(V, texts).float() for V in image])
        return (cams / (cams.amax(dim=(-2, -1), keepdim=True) + 1e-5)).mean(dim=0)
