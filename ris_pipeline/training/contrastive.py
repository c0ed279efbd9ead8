"""Contrastive training of the small CLIP on generated picture–caption pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.config import ClipConfig
from ris_pipeline.datasets.io.images import IMAGENET_MEAN, IMAGENET_STD
from ris_pipeline.networks.clip import Clip
from ris_pipeline.process.ranks import ALONE, Ranks
from ris_pipeline.shapes.captions import generate_pairs
from ris_pipeline.training.loop import Task
from ris_pipeline.training.losses import contrastive_loss
from ris_pipeline.training.sharing import gather_list, gather_rows

# A ModifiedResNet of 1+1+2+2 blocks, a quarter of RN50's width, and a 3-layer text transformer.
MODEL_CONFIG = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 160, "layers": [1, 1, 2, 2], "width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}
LAST_STRIDE = 16
PREPROCESSING: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@dataclass(frozen=True)
class Phase:
    """One stretch of the curriculum; its learning rate falls as a cosine of n_decay steps."""

    name: str  # with _lr the key of its learning rate
    side: int  # pixels of the square pictures
    n_things: tuple[int, int]
    with_siblings: bool
    batch_size: int
    n_steps: int
    n_decay: int
    lr: float
    stream: int = 0  # phases of one picture size take different streams of pairs
    with_faded: bool = False  # some things fade with the background, and the caption is about the others

    def rate(self, step: int) -> float:
        """Return the learning rate of a step of this phase: a linear warm-up of 100 steps times the cosine."""
        return self.lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / self.n_decay))


def curriculum(config: ClipConfig) -> tuple[Phase, ...]:
    """Return the phases: first small pictures of one or two things, which are learned much faster than crowded scenes.

    Last come scenes as they look behind a mask, which is how Step-1 and PRMS show them to this CLIP.
    """
    c = config
    return (
        Phase("object", 96, (1, 2), False, c.object_batch, c.object_steps, c.object_decay, c.object_lr),
        Phase("scene", 160, (1, 6), True, c.scene_batch, c.scene_steps, c.scene_steps, c.scene_lr),
        Phase(
            "mask", 160, (1, 6), True, c.scene_batch, c.mask_steps, c.mask_steps, c.mask_lr, stream=1, with_faded=True
        ),
    )


def build_small_clip() -> Clip:
    """Return the small CLIP with random values; c4 has stride 16."""
    return Clip.from_config(MODEL_CONFIG, last_stride=LAST_STRIDE, **PREPROCESSING)


class PairBatches:
    """The batches of a curriculum, for `train`; steps are counted through all phases."""

    def __init__(self, phases: Sequence[Phase], seed: int, ranks: Ranks = ALONE) -> None:
        self.phases, self.seed, self.ranks = phases, seed, ranks
        self.n_steps = self.steps_per_epoch = sum(phase.n_steps for phase in phases)

    def __getitem__(self, step: int) -> tuple[Tensor, list[str]]:
        """Return float32 pixels (B, 3, S, S), normalised by ImageNet's statistics, and B captions: this rank's part."""
        p, k = locate(self.phases, step)
        rng = np.random.default_rng([self.seed, p.side, p.stream, k])
        pairs = generate_pairs(rng, p.side, p.n_things, p.with_siblings, p.with_faded)
        batch = self.ranks.part_of(list(islice(pairs, p.batch_size)))
        mean, std = (np.array(v, np.float32) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (np.stack([pair.picture for pair in batch]) - mean) / std
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), [pair.caption for pair in batch]

    def describe(self, step: int) -> str:
        """Return the first captions of a step, and what to lower where their loss is not finite."""
        return f"captions of the batch: {self[step][1][:3]} …; lower {locate(self.phases, step)[0].name}_lr"


class ContrastiveTask(Task[tuple[Tensor, list[str]]]):
    """Symmetric InfoNCE with a learnt scale: AdamW, and a new one in each phase.

    Logged is also the accuracy: the share of pictures whose own caption scores highest in the batch.
    The pooling's positional table stays at zero: what a cell knows of its place must be in c4, where Step-1 reads it.
    """

    network: Clip
    clip_grad = 1.0

    def __init__(self, clip: Clip, phases: Sequence[Phase]) -> None:
        super().__init__()
        clip.model.visual.attnpool.positional_embedding.requires_grad_(False).zero_()
        self.network, self.phases = clip.to(memory_format=torch.channels_last), phases

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW at a rate of 1, which `rate` scales to that of the phase; matrices alone decay."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))

    def rate(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step in its phase."""
        phase, k = locate(self.phases, step)
        return phase.rate(k)

    def forward(self, batch: tuple[Tensor, list[str]]) -> dict[str, Tensor]:
        """Return the loss and the accuracy; the features are compared in float32."""
        pixels, captions = batch
        tokens = self.network.tokenize(captions).to(self.device)
        tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]  # no time for padding
        image = self.network.encode_image(pixels.to(self.device, non_blocking=True, memory_format=torch.channels_last))
        text = self.network.encode_text(tokens)
        with torch.autocast(self.device.type, enabled=False):
            (image, _), (text, _) = (gather_rows(F.normalize(x.float(), dim=-1)) for x in (image, text))
            captions, _ = gather_list(captions)
            loss = contrastive_loss(image, text, self.network.model.logit_scale.exp(), captions)
            with torch.no_grad():
                hits = (image @ text.T).argmax(1) == torch.arange(len(captions), device=self.device)
        return {"loss": loss, "accuracy": hits.float().mean()}

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Keep the scale in its limits; forget the moments at the end of a phase."""
        self.network.model.logit_scale.clamp_(0, math.log(100))
        phase, k = locate(self.phases, step)
        if k + 1 == phase.n_steps:
            optimizer.state.clear()


def locate(phases: Sequence[Phase], step: int) -> tuple[Phase, int]:
    """Return the phase of a step of the whole curriculum, and the step's number in it."""
    for phase in phases:
        if step < phase.n_steps:
            return phase, step
        step -= phase.n_steps
    raise IndexError(step)
