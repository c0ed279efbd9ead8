"""Pixel–word attention: every position looks up the words of the sentence (TRIS, ICCV 2023, after LAVT)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.networks.parts.instance_norm import InstanceNorm2d


class PixelAttention(nn.Module):
    """Attention from positions of `channels` values to words of `word_width` values.

    Submodule names are those of the released checkpoints.
    """

    def __init__(self, channels: int, word_width: int) -> None:
        super().__init__()
        self.Wk = nn.Conv1d(word_width, channels, 1)
        self.Wv = nn.Conv1d(word_width, channels, 1)
        self.Wq = nn.Conv2d(channels, channels, 1)
        self.Wm = nn.Conv2d(channels, channels, 1)
        self.Ww = nn.Conv2d(channels, channels, 1)
        self.Wo = nn.Conv2d(channels, channels, 1)
        self.ins_q = InstanceNorm2d(channels, affine=True)
        self.ins_w = InstanceNorm2d(channels, affine=True)

    def forward(self, V: Tensor, words: Tensor, image_of: Tensor | None = None) -> Tensor:
        """Return float (N, C, h, w) ≥ 0, what the words add to each position.

        `V` float (B, C, h, w), `words` float (N, T, word_width), `image_of` int64 (N,) the row of V that each
        sentence is about; None where B is N, or 1 image for all. What depends on the image alone is computed once.

            A = softmax_T(IN(W_q V)ᵀ (W_k words)/√C)
            G = IN(W_w (A (W_v words)))
            result = ReLU(W_o (ReLU(W_m V)·G))

        Padding takes part, as in the released code: what follows the end token has seen the whole sentence.
        """
        Q, M = self.ins_q(self.Wq(V)).flatten(2).transpose(1, 2), F.relu(self.Wm(V))  # (B, hw, C), (B, C, h, w)
        Q, M = of_sentences(Q, image_of), of_sentences(M, image_of)
        words = words.transpose(1, 2)  # (N, word_width, T)
        A = torch.softmax(Q @ self.Wk(words) / math.sqrt(V.shape[1]), dim=-1)  # (N, hw, T)
        # W_w (A values) = A (W_w values): T words to multiply instead of hw positions; A's rows sum to 1, so the
        # bias comes out the same.
        values = F.conv1d(self.Wv(words), self.Ww.weight.flatten(2), self.Ww.bias)  # (N, C, T)
        looked_up = (values @ A.transpose(1, 2)).reshape(len(words), *V.shape[1:])  # (N, C, h, w)
        return F.relu(self.Wo(M * self.ins_w(looked_up)))


def of_sentences(values: Tensor, image_of: Tensor | None) -> Tensor:
    """Return the row of `values` (B, …) for each of N sentences, (N, …): `values` itself where `image_of` is None."""
    # Not values[image_of]: on several threads its gradient is added up in a varying order, and a training that is
    # repeated ends in other weights.
    return values if image_of is None else values.index_select(0, image_of)
