"""What one training step computes: the losses of Step-1 and Step-2 on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.referring import ReferringNetwork
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.losses import calibration_loss, classification_loss, step2_loss

Losses = dict[str, Tensor]


class Optimised(Protocol):
    """The part of a stage's configuration that the loop reads."""

    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def backbone_lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def poly_power(self) -> float: ...


class Task(nn.Module):
    """A network and its losses; `network` is what is saved."""

    network: ReferringNetwork

    def forward(self, batch: Batch) -> Losses:
        """The losses by name, float scalars; "loss" is the one to minimise."""
        raise NotImplementedError


class Step1Task(Task):
    """L_pos + 2·L_neg + λ·L_cls (TRIS): weights as configured. aux: the frozen CLIP of the calibration loss."""

    def __init__(self, network: Step1, aux: Clip, config: Step1Config) -> None:
        super().__init__()
        self.network: Step1 = network
        self.aux = aux.requires_grad_(False).eval()
        self.config = config

    def train(self, mode: bool = True) -> Step1Task:
        """This task in training (or evaluation) mode; the frozen CLIP is never in training mode."""
        super().train(mode)
        self.aux.eval()
        return self

    def forward(self, batch: Batch) -> Losses:
        """The losses cls, pos, neg and their weighted sum."""
        device = batch.pixels.device
        sentences = [draw.sentence for draw in batch.draws]
        n = len(sentences)
        tokens = self.network.clip.tokenize(sentences).to(device)
        S = self.network(batch.pixels, tokens).float()  # (B, N, h, w)
        own = batch.image_of[None, :] == torch.arange(len(S), device=device)[:, None]
        S_diag = S[batch.image_of, torch.arange(n, device=device)]
        with torch.no_grad():
            positive = self._encode(sentences, device)
            n_negatives = min(len(draw.negatives) for draw in batch.draws)
            negatives = [text for draw in batch.draws for text in draw.negatives[:n_negatives]]
            negative = (
                self._encode(negatives, device).view(n, n_negatives, -1) if negatives else positive[:, None][:, :0]
            )
        pixels = batch.pixels if len(S) == n else batch.pixels[batch.image_of]
        cls = classification_loss(S, own)
        pos, neg = calibration_loss(S_diag, pixels, self.aux, positive, negative)
        if not negatives:  # a data set of one ref: nothing to be unlike
            neg = torch.zeros_like(pos)
        c = self.config
        return {
            "loss": c.weight_pos * pos + c.weight_neg * neg + c.weight_cls * cls,
            "cls": cls,
            "pos": pos,
            "neg": neg,
        }

    def _encode(self, sentences: Sequence[str], device: torch.device) -> Tensor:
        """The frozen CLIP's features (n, D), each different sentence encoded once."""
        distinct = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
        features = self.aux.encode_text(self.aux.tokenize(list(distinct)).to(device)).float()
        return features[[distinct[sentence] for sentence in sentences]]


class Step2Task(Task):
    """The sum of the four heads' cross-entropies against the labels (TRIS)."""

    def __init__(self, network: Step2, config: Step2Config) -> None:
        super().__init__()
        self.network: Step2 = network
        self.config = config

    def forward(self, batch: Batch) -> Losses:
        """The loss of the batch; its labels must be there."""
        assert batch.labels is not None
        tokens = self.network.clip.tokenize([draw.sentence for draw in batch.draws]).to(batch.pixels.device)
        levels, words = self.network.encode_image(batch.pixels), self.network.encode_text(tokens)
        shares_images = len(batch.pixels) != len(tokens)
        heads: Any = self.network.segment(levels, words, batch.image_of if shares_images else None)
        return {"loss": step2_loss([head.float() for head in heads], batch.labels)}
