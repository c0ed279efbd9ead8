"""Contrastive training of the small CLIP on generated picture–caption pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.config import ClipConfig
from ris_pipeline.datasets.io.images import IMAGENET_MEAN, IMAGENET_STD
from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.process import signals as stops
from ris_pipeline.process.device import autocast
from ris_pipeline.shapes.captions import generate_pairs
from ris_pipeline.training.checkpoints import TrainingState, seed_step
from ris_pipeline.training.readers import read_ahead

# A ModifiedResNet of 1+1+2+2 blocks, a quarter of RN50's width, and a 3-layer text transformer.
MODEL_CONFIG = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 160, "layers": [1, 1, 2, 2], "width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}
LAST_STRIDE = 16


@dataclass(frozen=True)
class Phase:
    """One stretch of the curriculum; its learning rate falls as a cosine of n_decay steps."""

    name: str
    side: int  # pixels of the square pictures
    n_things: tuple[int, int]
    with_siblings: bool
    batch_size: int
    n_steps: int
    n_decay: int
    lr: float
    stream: int = 0  # phases of one picture size take different streams of pairs
    with_faded: bool = False  # some things fade with the background, and the caption is about the others


def curriculum(config: ClipConfig) -> tuple[Phase, ...]:
    """Small pictures of one or two things first: they are learned many times faster than crowded scenes.

    Last, scenes as they look behind a mask, which is how Step-1 and PRMS show them to this CLIP.
    """
    c = config
    return (
        Phase("objects", 96, (1, 2), False, c.object_batch, c.object_steps, c.object_decay, c.object_lr),
        Phase("scenes", 160, (1, 6), True, c.scene_batch, c.scene_steps, c.scene_steps, c.scene_lr),
        Phase(
            "masks", 160, (1, 6), True, c.scene_batch, c.mask_steps, c.mask_steps, c.mask_lr, stream=1, with_faded=True
        ),
    )


def build_small_clip() -> Clip:
    """The small CLIP with random values; c4 has stride 16."""
    return Clip.from_config(MODEL_CONFIG, last_stride=LAST_STRIDE)


class PairBatches:
    """Batch k: float32 pixels (B, 3, S, S), normalised by ImageNet's statistics, and B captions; endless."""

    def __init__(self, phase: Phase, seed: int) -> None:
        self.phase, self.seed = phase, seed

    def __getitem__(self, k: int) -> tuple[Tensor, list[str]]:
        rng = np.random.default_rng([self.seed, self.phase.side, self.phase.stream, k])
        p = self.phase
        pairs = generate_pairs(rng, p.side, p.n_things, p.with_siblings, p.with_faded)
        batch = list(islice(pairs, self.phase.batch_size))
        mean, std = (np.array(v, np.float32) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (np.stack([pair.picture for pair in batch]) - mean) / std
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), [pair.caption for pair in batch]


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, captions: list[str]) -> Tensor:
    """Symmetric InfoNCE of normalised features (B, D); pairs with the same caption are not each other's negatives."""
    logits = scale * image @ text.T
    ids = {caption: i for i, caption in enumerate(captions)}
    key = torch.tensor([ids[caption] for caption in captions])
    same = (key[:, None] == key[None, :]) & ~torch.eye(len(captions), dtype=torch.bool)
    logits = logits.masked_fill(same.to(logits.device), -math.inf)
    target = torch.arange(len(captions), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def _learning_rate(step: int, phase: Phase, n_warmup: int = 100) -> float:
    warm = min(1.0, (step + 1) / n_warmup)
    return phase.lr * warm * 0.5 * (1 + math.cos(math.pi * step / phase.n_decay))


def train_clip(
    clip: Clip,
    phases: Sequence[Phase],
    seed: int,
    *,
    folder: Path,
    precision: str,
    workers: int,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train clip in place, phase after phase, each with a new optimiser; report(step, values) after every step.

    Steps are counted through all phases; each is logged in folder/metrics.jsonl. A run that broke off goes on
    at its last checkpoint. Values: the loss, and as accuracy the share of pictures whose own caption scores highest
    in the batch.
    The pooling's positional table stays at zero: what a cell knows of its place must be in c4, where Step-1 reads it.
    """
    clip.model.visual.attnpool.positional_embedding.requires_grad_(False).zero_()
    decayed = [p for p in clip.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in clip.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    device = next(clip.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    state = TrainingState(folder, {"clip": clip.train(), "optimizer": optimizer, "scaler": scaler})
    start = state.load()
    first = 0
    with stops.deferred():
        for phase in phases:
            steps = range(max(start - first, 0), phase.n_steps)
            with closing(read_ahead(PairBatches(phase, seed), steps, workers)) as batches:
                for step, batch in zip(steps, batches, strict=True):
                    if step == 0:
                        optimizer.state.clear()
                    seed_step(seed, first + step)
                    for group in optimizer.param_groups:
                        group["lr"] = _learning_rate(step, phase)
                    with autocast(device, precision):
                        image, text = _encode(clip, *batch)
                    values = _descend(clip, optimizer, scaler, image, text, batch[1])
                    report(first + step, values)
                    state.step_done(**values)
            first += phase.n_steps


def _encode(clip: Clip, pixels: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
    device = next(clip.parameters()).device
    tokens = clip.tokenize(captions).to(device)
    tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]  # no time for padding
    return clip.encode_image(pixels.to(device, memory_format=torch.channels_last)), clip.encode_text(tokens)


def _descend(
    clip: Clip,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    image: Tensor,
    text: Tensor,
    captions: list[str],
) -> dict[str, float]:
    """One step of the optimiser from the features (B, D) of a batch; its loss and accuracy."""
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    loss = contrastive_loss(image, text, clip.model.logit_scale.exp(), captions)
    if not torch.isfinite(loss):
        raise RisError(f"the loss is not finite; captions of the batch: {captions[:3]} …; lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaler.scale(loss))
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    with torch.no_grad():
        clip.model.logit_scale.clamp_(0, math.log(100))
        hit = ((image @ text.T).argmax(1).cpu() == torch.arange(len(captions))).float().mean()
    return {"loss": loss.item(), "accuracy": hit.item()}
