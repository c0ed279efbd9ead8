"""Which places of an image a CLIP looked at to find it like a text (Chefer, Gur and Wolf, ICCV 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.networks import vit
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.pooling import attend_pool


def compute_relevance(clip: Clip, pixels: Tensor, image_of: Tensor, texts: Tensor) -> Tensor:
    """Return relevances float (n, h, w) ≥ 0 of n texts, each with its image, on the grid of the CLIP's places.

    `pixels` float (B, 3, S, S) at the size that the CLIP reads; `image_of` int64 (n,), each text's row in it; `texts`
    float (n, E). With A the attention of the last block (heads, N, N) and y the cosine of image and text, it is the
    class token's row of mean_heads ReLU(A · ∂y/∂A), without its own column.

    A ResNet, which the paper does not have, attends once, in its pooling: A is the attention of the mean token there.
    """
    with torch.no_grad():
        before = _run_ahead(clip, pixels)[image_of]
    with torch.enable_grad():
        features, attention = _attend_last(clip, before.requires_grad_())
        cosines = F.cosine_similarity(features, texts, dim=-1)
        (gradient,) = torch.autograd.grad(cosines.sum(), attention)
    relevance = (attention.detach() * gradient).relu().mean(dim=1)[:, 0, 1:]
    hw = before.shape[2:] if clip.is_resnet else vit.grid_of(clip.model.visual, (pixels.shape[2], pixels.shape[3]))
    return relevance.view(-1, *hw)


def _run_ahead(clip: Clip, pixels: Tensor) -> Tensor:
    """Return what enters the last attention: c4 float (B, C, h, w) of a ResNet, tokens float (B, N, D) of a ViT."""
    if clip.is_resnet:
        return clip.levels(pixels)[3]
    visual: Any = clip.model.visual
    vit.check_vit(visual)
    return vit.run_blocks(visual.transformer.resblocks[:-1], vit.embed(visual, pixels, "bilinear"))[0]


def _attend_last(clip: Clip, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image features float (n, E), not normalised, and the attention behind them float (n, heads, Q, N)."""
    visual: Any = clip.model.visual
    if clip.is_resnet:
        return attend_pool(visual.attnpool, x)
    x, attention = vit.attend(visual.transformer.resblocks[-1], x)
    return vit.project(visual, x[:, 0]), attention
