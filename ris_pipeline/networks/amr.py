"""AMR (AAAI 2022) with sentences for classes: a ResNet, and a second one that looks at what the first leaves out."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.stages import StageBackbone

REDUCTION = 16  # of the channels inside an AMM; AMR
KERNEL = 7  # cells; of the spatial half of an AMM; AMR
_LAYER = re.compile(r"\blayer(\d)\.")  # the stage of a parameter; the stem's have none

Branch = Literal["spotlight", "compensation"]


class ActivationModulation(nn.Module):
    """AMM: weight channels, then cells, by how near their importance is to the mean: neither the largest nor 0 wins.

    x ← x·g(z), g(z) = exp(−(z − μ)²/2σ²) / (√(2π)·σ), with z for channels an MLP of their means, and for cells a 7×7
    convolution of the channels' maximum and mean. No gradient flows through μ and σ.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        hidden = max(n_channels // REDUCTION, 1)
        self.mlp = nn.Sequential(nn.Linear(n_channels, hidden), nn.ReLU(), nn.Linear(hidden, n_channels))
        self.conv = nn.Conv2d(2, 1, KERNEL, padding=KERNEL // 2, bias=False)
        # Differs from AMR: μ, σ and this normalisation are each image's own. There they are the batch's, also when the
        # network answers, so that a map would depend on what else is in the batch.
        self.norm = nn.GroupNorm(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x float (B, C, H, W), modulated."""
        x = x * gaussian_gate(self.mlp(x.mean(dim=(2, 3))))[:, :, None, None].to(x.dtype)
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * gaussian_gate(self.norm(self.conv(pooled))).to(x.dtype)


def gaussian_gate(z: Tensor) -> Tensor:
    """Return the normal density of z float (B, …) at each value, float32: of the mean and deviation of each image's."""
    z = z.float()
    dims = tuple(range(1, z.ndim))
    mean = z.mean(dims, keepdim=True).detach()
    deviation = z.std(dims, keepdim=True).detach().clamp(min=1e-5)  # a constant z would give 0/0
    return torch.exp(-((z - mean) ** 2) / (2 * deviation**2)) / (math.sqrt(2 * math.pi) * deviation)


class Amr(nn.Module):
    """The spotlight branch, the compensation branch with an AMM in each bottleneck, and weights made of sentences.

    In AMR a class has a weight vector in each branch. Here a branch brings its last level to C channels by a 1×1
    convolution without bias, and a sentence's weights are its CLIP feature through a linear layer: the two convolutions
    and the one layer are what the multiplications and parameters of the paper's Table 2 imply.
    """

    def __init__(self, spotlight: StageBackbone, compensation: StageBackbone, clip: Clip, hidden: int) -> None:
        """Take over two ResNets and a CLIP, of which only the text encoder is kept; it does not learn."""
        super().__init__()
        insert_modulation(compensation)
        self.spotlight, self.compensation = spotlight, compensation
        self.spotlight_head = nn.Conv2d(spotlight.stage_channels[-1], hidden, 1, bias=False)
        self.compensation_head = nn.Conv2d(compensation.stage_channels[-1], hidden, 1, bias=False)
        self.clip = clip.drop_image_encoder().requires_grad_(False)
        self.lan_project = nn.Linear(clip.embed_dim, hidden)
        # AMR: both stems stay as loaded, and so does the first stage of the compensation branch.
        for branch, first in ((spotlight, 1), (compensation, 2)):
            for name, parameter in branch.named_parameters():
                parameter.requires_grad_(_stage_of(name) >= first)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Return self in training (or evaluation) mode; BatchNorm keeps its statistics in either, as in AMR."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        self.clip.eval()
        return self

    def encode_image(self, pixels: Tensor, branch: Branch) -> Tensor:
        """Return V float (B, C, h, w) at stride 16 of `pixels` float (B, 3, H, W) in one of the branches."""
        if branch == "spotlight":
            V: Tensor = self.spotlight_head(self.spotlight.stages(pixels)[-1])
        else:
            V = self.compensation_head(self.compensation.stages(pixels)[-1])
        return V

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return T float (N, C), the weights that `tokens` int64 (N, T) make."""
        with torch.no_grad():  # of length 1, as CLIP compares them: AMR's learning rates are those of small weights
            sentences = F.normalize(self.clip.encode_text(tokens), dim=-1)
        weights: Tensor = self.lan_project(sentences)
        return weights


def classify(V: Tensor, T: Tensor) -> Tensor:
    """Return the logits float (B, N) of each image with each sentence: the mean of ⟨V, T⟩ over the cells.

    `V` float (B, C, h, w), `T` float (N, C).
    """
    return V.mean(dim=(2, 3)) @ T.T


def activate(V: Tensor, T: Tensor) -> Tensor:
    """Return the class activation maps float (n, h, w) ≥ 0, ReLU of ⟨V, T⟩.

    `T` float (n, C); `V` float (B, C, h, w), B = 1 (one image for all sentences) or n (one for each).
    """
    return F.relu(torch.einsum("nchw,nc->nhw", V.expand(len(T), -1, -1, -1), T))


def insert_modulation(backbone: StageBackbone) -> None:
    """Put an AMM behind the third BatchNorm of each bottleneck, before the residual is added.

    Raises RisError for a ResNet without bottlenecks.
    """
    blocks = [module for module in backbone.modules() if isinstance(getattr(module, "bn3", None), nn.BatchNorm2d)]
    blocks = [block for block in blocks if hasattr(block, "downsample")]  # not the stem of a CLIP-ResNet
    if not blocks:
        raise RisError("AMR modulates a ResNet's bottlenecks, and this one has none: take resnet50 or a CLIP's")
    for block in blocks:
        norm = block.get_submodule("bn3")
        assert isinstance(norm, nn.BatchNorm2d)
        block.bn3 = nn.Sequential(OrderedDict(norm=norm, amm=ActivationModulation(norm.num_features)))


def _stage_of(name: str) -> int:
    """Return the stage, 1 to 4, of a parameter of a ResNet by its name; 0 for the others."""
    found = _LAYER.search(name)
    return int(found[1]) if found else 0
