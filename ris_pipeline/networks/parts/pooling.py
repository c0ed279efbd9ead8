"""CLIP-ResNet's attention pooling on a grid of any size."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_positions(
    table: Tensor,
    hw: tuple[int, int],
    own_hw: tuple[int, int] | None = None,
    mode: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """Return a CLIP's positional table float (1 + s·s, C) for a grid of h×w cells, (1 + h·w, C); align_corners=False.

    The first row, of the class or mean token, stays. `own_hw`: the grid of the table; None: a square.
    """
    side = round((table.shape[0] - 1) ** 0.5)
    own_hw = own_hw or (side, side)
    if own_hw == hw:
        return table
    grid = table[1:].T.reshape(1, -1, *own_hw)
    grid = F.interpolate(grid, hw, mode=mode, align_corners=False)
    return torch.cat([table[:1], grid.flatten(2)[0].T])


def attention_pool(pooling: Any, c4: Tensor) -> Tensor:
    """Return the image feature float (B, D) of c4 float (B, C, h, w), as open_clip's AttentionPool2d, for any h×w.

    Only the mean token asks, so one query is computed where open_clip computes 1 + h·w.
    """
    cells = c4.flatten(2).permute(2, 0, 1)  # (h·w, B, C)
    cells = torch.cat([cells.mean(dim=0, keepdim=True), cells])
    cells = cells + resize_positions(pooling.positional_embedding, (c4.shape[2], c4.shape[3]))[:, None]
    pooled, _ = F.multi_head_attention_forward(
        query=cells[:1],
        key=cells,
        value=cells,
        embed_dim_to_check=cells.shape[-1],
        num_heads=pooling.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pooling.q_proj.bias, pooling.k_proj.bias, pooling.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pooling.c_proj.weight,
        out_proj_bias=pooling.c_proj.bias,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=pooling.q_proj.weight,
        k_proj_weight=pooling.k_proj.weight,
        v_proj_weight=pooling.v_proj.weight,
    )
    return pooled[0]


def attend_pool(pooling: Any, c4: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image feature (B, D) of c4 (B, C, h, w), as `attention_pool`, and the attention behind it.

    The attention (B, heads, 1, 1 + h·w), the mean token's to itself first, is part of the graph.
    """
    cells = c4.flatten(2).transpose(1, 2)  # (B, h·w, C)
    cells = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)
    cells = cells + resize_positions(pooling.positional_embedding, (c4.shape[2], c4.shape[3]))
    q, k, v = (
        layer(x).unflatten(-1, (pooling.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
        for layer, x in ((pooling.q_proj, cells[:, :1]), (pooling.k_proj, cells), (pooling.v_proj, cells))
    )
    attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    feature: Tensor = pooling.c_proj((attention @ v).transpose(1, 2).flatten(2)[:, 0])
    return feature, attention
