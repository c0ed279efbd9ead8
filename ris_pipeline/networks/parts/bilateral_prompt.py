"""The bilateral prompt: image and texts look at each other before they are compared (TRIS, ICCV 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ris_pipeline.networks.parts.instance_norm import InstanceNorm2d

PROMPT_WEIGHT = 0.1  # of both updates, in the paper and the released code


class BilateralPrompt(nn.Module):
    """Cross-attention both ways between positions and texts, both of `channels` values.

    proj1, 2, 3 give Q, K, V. Submodule names are those of the released checkpoints.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.v_proj1 = _position_projection(channels)
        self.v_proj2 = _position_projection(channels)
        self.v_proj3 = _position_projection(channels)
        self.t_proj1 = _text_projection(channels)
        self.t_proj2 = _text_projection(channels)
        self.t_proj3 = _text_projection(channels)
        self.v_output = nn.Sequential(nn.Conv2d(channels, channels, 1), InstanceNorm2d(channels, affine=True))
        self.t_output = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, V: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prompted V float (B, C, h, w) and T float (B, N, C): every image meets all N texts.

        `V` float (B, C, h, w), `T` float (N, C). The texts come back once for each image:

            V + 0.1·IN(conv(softmax_N(Q_v K_tᵀ/√C) V_t)),   T + 0.1·linear(softmax_hw(Q_t K_vᵀ/√C) V_v)

        InstanceNorm's statistics are over the h×w positions of one image and channel, also at test time.
        """
        Q_v = self.v_proj1(V).flatten(2).transpose(1, 2)  # (B, hw, C)
        K_t, V_t = self.t_proj2(T), self.t_proj3(T)
        A_v = torch.softmax(Q_v @ K_t.T / math.sqrt(V.shape[1]), dim=-1)  # (B, hw, N)
        looked_up = (A_v @ V_t).transpose(1, 2).reshape(V.shape)
        return V + PROMPT_WEIGHT * self.v_output(looked_up), self._prompt_texts(V, T.unsqueeze(0))

    def prompt_each(self, V: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prompted V float (B, C, h, w) and T float (B, K, C), each text alone with its image.

        `V` float (B, C, h, w), `T` float (B, K, C): K texts for each image. The same values as `forward` with
        N = 1 for each pair: the softmax over one text is 1, so all positions look up the same value, and
        InstanceNorm leaves nothing of a constant but its bias: the visual update, whatever the text.
        """
        bias: Tensor = self.v_output.get_parameter("1.bias")
        return V + PROMPT_WEIGHT * bias[:, None, None], self._prompt_texts(V, T)

    def _prompt_texts(self, V: Tensor, T: Tensor) -> Tensor:
        """Return T + 0.1·linear(A_t V_v), float (B, K, C), for `T` float (B or 1, K, C)."""
        K_v = self.v_proj2(V).flatten(2)  # (B, C, hw)
        V_v = self.v_proj3(V).flatten(2).transpose(1, 2)  # (B, hw, C)
        A_t = torch.softmax(self.t_proj1(T) @ K_v / math.sqrt(V.shape[1]), dim=-1)  # (B, K, hw)
        update: Tensor = self.t_output(A_t @ V_v)
        return T + PROMPT_WEIGHT * update


def _position_projection(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), InstanceNorm2d(channels, affine=True), nn.ReLU(inplace=True))


def _text_projection(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(inplace=True))
