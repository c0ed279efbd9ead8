"""What a CLIP says at each place of an image, without training: dense features, and an image opened for Grad-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ris_pipeline.networks import vit
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.pooling import attention_pool

N_ATTENTION_MAPS = 8  # last blocks of a ViT whose attention is the affinity; CLIP-ES (CVPR 2023), §3.3


def find_grid(clip: Clip, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the grid (h, w) of places of an image of that height and width. Raises RisError where a ViT has none."""
    if clip.is_resnet:
        return clip.grid_side(image_hw[0]), clip.grid_side(image_hw[1])
    vit.check_vit(clip.model.visual)
    return vit.grid_of(clip.model.visual, image_hw)


def dense_features(clip: Clip, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return features float (B, E, h, w) and keys float (B, C, h, w), not normalised, of `pixels` float (B, 3, H, W).

    MaskCLIP (ECCV 2022, §3.2): the pooling's attention is left out, so that each place keeps its own value. A ResNet's
    value and output projections act as 1×1 convolutions on c4; a ViT's last block follows its values alone.
    """
    visual: Any = clip.model.visual
    if clip.is_resnet:
        pooling = visual.attnpool
        cells = clip.levels(pixels)[3].permute(0, 2, 3, 1)  # (B, h, w, C)
        features, keys = pooling.c_proj(pooling.v_proj(cells)), pooling.k_proj(cells)
        return features.permute(0, 3, 1, 2), keys.permute(0, 3, 1, 2)
    vit.check_vit(visual)
    h, w = vit.grid_of(visual, (pixels.shape[2], pixels.shape[3]))
    *blocks, last = visual.transformer.resblocks
    x, _ = vit.run_blocks(blocks, vit.embed(visual, pixels, "bicubic"))
    features = vit.project(visual, vit.follow_values(last, x)[:, 1:])
    # Differs from MaskCLIP: there the keys, too, pass through the output projection.
    keys = vit.keys_of(last, x)[:, 1:]
    return features.transpose(1, 2).reshape(len(pixels), -1, h, w), keys.transpose(1, 2).reshape(len(pixels), -1, h, w)


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """One image inside a CLIP, with the graph from its last activations to its feature.

    activations float (1, N, D) with gradient, whose last h·w rows are the places; feature float (1, E), not normalised;
    affinity float (h·w, h·w): how much place i attends to place j, rows summing to at most 1.
    """

    grid_hw: tuple[int, int]
    activations: Tensor
    feature: Tensor
    affinity: Tensor


def open_image(clip: Clip, pixels: Tensor) -> OpenedImage:
    """Return an image `pixels` float (1, 3, H, W), opened where CLIP-ES takes its Grad-CAM.

    A ViT: what enters the last block's attention (ln_1); the feature is the mean of the projected places; the affinity
    the mean of the last N_ATTENTION_MAPS attention maps. A ResNet, which CLIP-ES does not have: c4; the pooled feature;
    the attention of the pooling's values to one another. (Its queries were only ever those of the mean, and say nothing
    of a place.)
    """
    return _open_resnet(clip, pixels) if clip.is_resnet else _open_vit(clip.model.visual, pixels)


def _open_vit(visual: Any, pixels: Tensor) -> OpenedImage:
    vit.check_vit(visual)
    *blocks, last = visual.transformer.resblocks
    with torch.no_grad():
        x, attentions = vit.run_blocks(blocks, vit.embed(visual, pixels, "bilinear"))
        normalised = last.ln_1(x)
    with torch.enable_grad():
        # Not x: the gradient of Grad-CAM passes through the attention alone, not along the residual.
        activations = normalised.detach().requires_grad_()
        x, attention = vit.attend(last, x, activations)
        feature = vit.project(visual, x[:, 1:]).mean(dim=1)
    maps = [*attentions, attention.detach().mean(dim=1)][-N_ATTENTION_MAPS:]
    affinity = torch.stack(maps).mean(dim=0)[0, 1:, 1:]
    return OpenedImage(vit.grid_of(visual, (pixels.shape[2], pixels.shape[3])), activations, feature, affinity)


def _open_resnet(clip: Clip, pixels: Tensor) -> OpenedImage:
    pooling: Any = clip.model.visual.attnpool
    with torch.no_grad():
        c4 = clip.levels(pixels)[3]
    h, w = c4.shape[2], c4.shape[3]
    with torch.enable_grad():
        activations = c4.detach().flatten(2).transpose(1, 2).requires_grad_()  # (1, hw, C)
        feature = attention_pool(pooling, activations.transpose(1, 2).view(1, -1, h, w))
    with torch.no_grad():
        values = pooling.v_proj(activations[0]).view(h * w, pooling.num_heads, -1).transpose(0, 1)
        affinity = (values @ values.transpose(1, 2) / values.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=0)
    return OpenedImage((h, w), activations, feature, affinity)
