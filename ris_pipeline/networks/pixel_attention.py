"""Pixel–word attention: every position looks up the words of the sentence (TRIS, ICCV 2023, after LAVT)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        self.ins_q = nn.InstanceNorm2d(channels, affine=True)
        self.ins_w = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, V: Tensor, words: Tensor) -> Tensor:
        """Return float (N, C, h, w) ≥ 0, what the words add to each position.

        `V` float (N or 1, C, h, w), `words` float (N, T, word_width):

            A = softmax_T(IN(W_q V)ᵀ (W_k words)/√C)
            G = IN(W_w (A (W_v words)))
            result = ReLU(W_o (ReLU(W_m V)·G))

        Padding takes part, as in the released code: what follows the end token has seen the whole sentence.
        """
        words = words.transpose(1, 2)  # (N, word_width, T)
        K, values = self.Wk(words), self.Wv(words)
        Q = self.ins_q(self.Wq(V)).flatten(2).transpose(1, 2)  # (N or 1, hw, C)
        A = torch.softmax(Q @ K / math.sqrt(V.shape[1]), dim=-1)  # (N, hw, T)
        looked_up = (values @ A.transpose(1, 2)).unflatten(-1, V.shape[-2:])  # (N, C, h, w)
        G = self.ins_w(self.Ww(looked_up))
        return F.relu(self.Wo(F.relu(self.Wm(V)) * G))
