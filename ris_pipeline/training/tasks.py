"""What one training step computes: the losses of Step-1 and Step-2 on a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.networks.clip import Clip, encode_each
from ris_pipeline.networks.referring import ReferringNetwork
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.loop import Task
from ris_pipeline.training.losses import calibration_loss, classification_loss, overlap_loss, step2_loss
from ris_pipeline.training.sharing import gather_rows, weight_of


class ReferringTask(Task[Batch]):
    """What Step-1 and Step-2 have in common: AdamW, the encoders at a rate of their own."""

    network: ReferringNetwork

    def __init__(self, network: ReferringNetwork, config: Step1Config | Step2Config) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.poly_power = config.poly_power
        self._rates = config.lr, config.backbone_lr, config.weight_decay

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW on the network's two groups of parameters."""
        # One fused kernel: five times as fast over a CLIP's token embedding.
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(self.network.parameter_groups(*self._rates), fused=fused)


class Step1Task(ReferringTask):
    """L_pos + 2·L_neg + λ·L_cls (TRIS), weighted as configured; `aux` is the frozen CLIP of the calibration loss."""

    network: Step1

    def __init__(self, network: Step1, aux: Clip, config: Step1Config) -> None:
        super().__init__(network, config)
        self.aux = aux.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.config = config

    def train(self, mode: bool = True) -> Step1Task:
        """Return self in training (or evaluation) mode; the frozen CLIP is never in training mode."""
        super().train(mode)
        self.aux.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses cls, pos, neg and their weighted sum."""
        device = self.device
        if torch.is_autocast_enabled(device.type):  # in float32 another order of sums could move the last digit
            self.aux.put_positions_first()
        sentences = [draw.sentence for draw in batch.draws]
        n = len(sentences)
        # Texts and numbers first: each way to the device waits for what it is doing, and the images take long.
        T, first = gather_rows(self.network.encode_text(self.network.clip.tokenize(sentences)))  # of the whole batch
        with torch.no_grad():
            positive = self._encode(sentences)
            n_each = torch.tensor([len(draw.negatives) for draw in batch.draws], device=device)
            n_negatives = int(gather_rows(n_each)[0].min())
            negatives = [text for draw in batch.draws for text in draw.negatives[:n_negatives]]
            negative = self._encode(negatives).view(n, n_negatives, -1) if negatives else positive[:, None][:, :0]
        image_ids = torch.tensor(batch.image_ids, device=device)
        batch = batch.to(device)
        own = image_ids[:, None] == gather_rows(image_ids[batch.image_of])[0][None, :]
        S = self.network.respond(self.network.encode_image(batch.pixels), T).float()  # (B, ΣN, h, w)
        S_diag = S[batch.image_of, first + torch.arange(n, device=device)]
        pixels = batch.pixels if len(S) == n else batch.pixels[batch.image_of]
        cls = weight_of(len(S), device) * classification_loss(S, own)
        weight = weight_of(n, device)
        pos, neg = (weight * loss for loss in calibration_loss(S_diag, pixels, self.aux, positive, negative))
        if not negatives:  # a data set of one ref: nothing to be unlike
            neg = torch.zeros_like(pos)
        c = self.config
        loss = c.weight_pos * pos + c.weight_neg * neg + c.weight_cls * cls
        if not c.weight_overlap:
            return {"loss": loss, "cls": cls, "pos": pos, "neg": neg}
        overlap = overlap_loss(S_diag, batch.image_of)
        return {"loss": loss + c.weight_overlap * overlap, "cls": cls, "pos": pos, "neg": neg, "overlap": overlap}

    def _encode(self, sentences: Sequence[str]) -> Tensor:
        """Return the frozen CLIP's features float32 (n, D)."""
        return encode_each(lambda texts: self.aux.encode_text(self.aux.tokenize(texts)).float(), sentences)


class Step2Task(ReferringTask):
    """The sum of the four heads' cross-entropies against the targets (TRIS)."""

    network: Step2

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch that has targets."""
        # The tokens first: their way to the device waits for what it is doing.
        tokens = self.network.clip.tokenize([draw.sentence for draw in batch.draws]).to(self.device)
        batch = batch.to(self.device)
        assert batch.targets is not None
        levels, words = self.network.encode_image(batch.pixels), self.network.encode_text(tokens)
        shares_images = len(batch.pixels) != len(tokens)
        heads = self.network.segment_heads(levels, words, batch.image_of if shares_images else None)
        return {"loss": step2_loss([head.float() for head in heads], batch.targets)}
