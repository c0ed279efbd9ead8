"""GbS, "Detector-Free Weakly Supervised Grounding by Separation" (ICCV 2021): where in a blend is what a text says?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.networks.parts.stages import StageBackbone
from ris_pipeline.networks.vgg import compute_levels
from ris_pipeline.networks.words import WordEncoder

N_GATED = 2  # deepest levels that the sentence gates: strides 32 and 16
STRIDE = 16  # of heat-maps


class Bottleneck(nn.Module):
    """A 3×3 convolution to C_out channels and a bottleneck beside it: x ← conv(x), ReLU(x + f(x))."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.inner = nn.Sequential(
            nn.Conv2d(c_out, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float (B, C_out, h, w) of x float (B, C_in, h, w)."""
        x = self.enter(x)
        return F.relu(x + self.inner(x))


class GbS(nn.Module):
    """VGG-16 with BatchNorm, whose two deepest levels the sentence gates; and a matching of each level with words.

    `features`: of `vgg.build_vgg`, or a ResNet's five stages in its place; `hidden`: the decoder's channels C, in GbS
    those of the last level; `n_levels`: how many levels, from the deepest, are matched, all five in GbS.
    Levels L1..L5 of VGG have strides 2..32, C_i channels; D is the width of the text.
    """

    def __init__(self, text: WordEncoder, features: nn.Sequential | StageBackbone, hidden: int, n_levels: int) -> None:
        super().__init__()
        channels = _count_channels(features)
        C, D = hidden, text.width
        self.text = text.requires_grad_(False)
        self.features = features
        self.conditions = nn.ModuleList(nn.Linear(D, c) for c in channels[: -N_GATED - 1 : -1])
        self.decoder = Bottleneck(channels[-1], C)
        self.head = nn.Conv2d(channels[-N_GATED] + C, 1, 3, padding=1, bias=False)
        self.level_heads = nn.ModuleList(Bottleneck(c, C) for c in channels[-n_levels:])
        self.project = nn.Conv2d(C, D, 1, bias=False)
        # Never run; the released network has them, and the paper of TRIS counts them.
        self.unused = nn.ModuleList([Bottleneck(C, C), *(nn.Linear(D, C) for _ in range(N_GATED))])

    def train(self, mode: bool = True) -> GbS:
        """Return self in training (or evaluation) mode; the text encoder stays in evaluation mode."""
        super().train(mode)
        # Differs from GbS: there BERT's dropout is on after the first validation.
        self.text.eval()
        return self

    def levels(self, pixels: Tensor) -> list[Tensor]:
        """Return L1..L5, float (B, C_i, S/s, S/s), of pixels float (B, 3, S, S)."""
        if isinstance(self.features, StageBackbone):
            return self.features.stages(pixels)
        return compute_levels(self.features, pixels)

    def grid_side(self, side: int) -> int:
        """Return the cells along a side of heat-maps for images of `side` pixels."""
        # VGG's pools round down, a ResNet's stages up.
        return -(-side // STRIDE) if isinstance(self.features, StageBackbone) else side // STRIDE

    def separate(self, levels: list[Tensor], sentences: Tensor | None) -> Tensor:
        """Return heat-maps float (B, S/16, S/16), not limited, of images and a sentence for each, float (B, D).

        Trained to be the share that the sentence's image has at each place of a blend. Each gated level x becomes
        x · exp(−|x − Linear(sentence)|). Without sentences x is normalised over its channels instead.
        """
        deep, skip = (
            F.normalize(x, dim=1) if sentences is None else _gate(x, linear(sentences))
            for x, linear in zip((levels[-1], levels[-2]), self.conditions, strict=True)
        )
        up = F.interpolate(self.decoder(deep), skip.shape[-2:], mode="bilinear", align_corners=False)
        heat: Tensor = self.head(torch.cat([skip, up], dim=1))
        return heat[:, 0]

    def project_levels(self, levels: list[Tensor]) -> Tensor:
        """Return places float (B, L, h·w, D), of length 1, of the matched levels on the grid of heat-maps."""
        grid_hw = levels[-2].shape[-2:]
        projected = [
            F.interpolate(self.project(head(level)), grid_hw, mode="bilinear", align_corners=True)
            for head, level in zip(self.level_heads, levels[-len(self.level_heads) :], strict=True)
        ]
        return F.normalize(torch.stack(projected, dim=1).flatten(3).transpose(2, 3), dim=-1)


def compare_places(places: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Return similarities float (B, N, L, T) in [-1, 1] and heat float (B, N, L, T, h·w) ≥ 0 of images and words.

    `places` float (B, L, h·w, D), of length 1; `words` float (N, T, D). heat = ReLU(cos(place, word)); the similarity
    is that of the word and the sum of all places weighted by its heat (Akbari et al., CVPR 2019). Of a word of zeros
    all are 0.
    """
    words = F.normalize(words, dim=-1)
    heat = torch.einsum("blpd,ntd->bnltp", places, words).relu()
    attended = F.normalize(torch.einsum("bnltp,blpd->bnltd", heat, places), dim=-1)
    return torch.einsum("bnltd,ntd->bnlt", attended, words), heat


def ground_words(places: Tensor, words: Tensor) -> Tensor:
    """Return float (n, h·w): for n sentences of one image the mean of their words' heat, weighted by similarity.

    `places` float (1, L, h·w, D), `words` float (n, T, D). Each word's heat is of the level that is most like it.
    """
    similarity, heat = (found[0] for found in compare_places(places, words))  # (n, L, T), (n, L, T, h·w)
    best, level = similarity.max(dim=1)  # (n, T)
    heat = heat.gather(1, level[:, None, :, None].expand(-1, 1, -1, heat.shape[-1]))[:, 0]  # (n, T, h·w)
    weight = best / (best.sum(dim=1, keepdim=True) + 1e-6)
    return (weight[..., None] * heat).sum(dim=1)


def _count_channels(features: nn.Sequential | StageBackbone) -> list[int]:
    if isinstance(features, StageBackbone):
        return list(features.stage_channels)
    convolutions = [layer for layer in features if isinstance(layer, nn.Conv2d)]
    return [convolutions[i].out_channels for i in (1, 3, 6, 9, 12)]  # the last before each pool


def _gate(x: Tensor, centre: Tensor) -> Tensor:
    """Return x float (B, C, h, w), those values kept that are near `centre` float (B, C)."""
    return x * torch.exp(-(x - centre[..., None, None]).abs())
