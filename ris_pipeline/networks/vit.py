"""CLIP's ViT opened up: tokens of images of any size, attention maps, the value path of a block.

Dense CLIP (MaskCLIP), Grad-CAM with affinity from attention (CLIP-ES) and attention-based relevance (WWbL) need what
open_clip's own forward pass hides. `visual` is an open_clip `VisionTransformer`; D is its width, N = 1 + h·w the number
of its tokens, the class token first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.errors import RisError
from ris_pipeline.networks.parts.pooling import resize_positions


def check_vit(visual: Any) -> None:
    """Raise RisError unless `visual` is a plain CLIP ViT: class token, learnt positions, one projection."""
    if not hasattr(visual, "transformer") or not hasattr(visual, "class_embedding"):
        raise RisError("this CLIP has no ViT: choose one of ViT-B-16-quickgelu, ViT-B-32-quickgelu")
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
        raise RisError("this CLIP's ViT pools by attention or by the mean: choose one of OpenAI's")


def grid_of(visual: Any, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the patch grid (h, w) of an image of `image_hw` pixels. Raises RisError where patches do not fit."""
    (patch_h, patch_w), (height, width) = visual.patch_size, image_hw
    if height % patch_h or width % patch_w:
        raise RisError(
            f"an image of {height}×{width} pixels has no whole patches of {patch_h}×{patch_w}: set input_size"
        )
    return height // patch_h, width // patch_w


def embed(visual: Any, pixels: Tensor, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Return the tokens float (B, N, D) that enter block 1, of `pixels` float (B, 3, H, W) of any whole-patch size.

    `mode`: how positions are resized to another grid than the ViT's own; MaskCLIP bicubic, CLIP-ES bilinear.
    """
    grid_hw = grid_of(visual, (pixels.shape[2], pixels.shape[3]))
    patches = visual.conv1(pixels).flatten(2).permute(0, 2, 1)  # (B, hw, D)
    first = visual.class_embedding.expand(len(pixels), 1, -1)
    positions = resize_positions(visual.positional_embedding, grid_hw, tuple(visual.grid_size), mode)
    tokens: Tensor = visual.ln_pre(torch.cat([first, patches], dim=1) + positions)
    return tokens


def attend(block: Any, x: Tensor, normalised: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the block's output float (B, N, D) and its attention float (B, heads, N, N), rows summing to 1.

    Both are part of the graph: gradients with respect to the attention can be taken, and with respect to `normalised`,
    which stands for ln_1(x), float (B, N, D), where it is given.
    """
    q, k, v = _project(block, block.ln_1(x) if normalised is None else normalised)
    attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    mixed = (attention @ v).transpose(1, 2).flatten(2)
    x = x + block.ls_1(block.attn.out_proj(mixed))
    return x + block.ls_2(block.mlp(block.ln_2(x))), attention


def follow_values(block: Any, x: Tensor) -> Tensor:
    """Return float (B, N, D): the block with each token attending to itself alone (MaskCLIP, ECCV 2022, §3.2)."""
    _, _, v = _project(block, block.ln_1(x))
    x = x + block.ls_1(block.attn.out_proj(v.transpose(1, 2).flatten(2)))
    followed: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return followed


def keys_of(block: Any, x: Tensor) -> Tensor:
    """Return float (B, N, D): the block's keys, all heads side by side."""
    return _project(block, block.ln_1(x))[1].transpose(1, 2).flatten(2)


def run_blocks(blocks: Sequence[Any], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the output float (B, N, D) of blocks in a row, and the heads' mean of each one's attention (B, N, N)."""
    attentions = []
    for block in blocks:
        x, attention = attend(block, x)
        attentions.append(attention.mean(dim=1))
    return x, attentions


def project(visual: Any, x: Tensor) -> Tensor:
    """Return tokens float (..., D) in the space shared with texts, float (..., embed_dim), not normalised."""
    projected: Tensor = visual.ln_post(x) @ visual.proj
    return projected


def _project(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v of normalised tokens `x`, each float (B, heads, N, D/heads)."""
    attn = block.attn
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = (part.view(*part.shape[:2], attn.num_heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return q, k, v
