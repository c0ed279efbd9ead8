"""WWbL, "What is Where by Looking" (NeurIPS 2022): a mask of the image for a sentence, from VGG-16's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.networks.clip import Clip

N_LAYERS = 23  # of VGG-16: up to the ReLU after conv4_3, stride 8
STRIDE = 2  # of logits


class WWbL(nn.Module):
    """VGG-16 up to conv4_3; a decoder whose places the sentence weighs; a sentence by CLIP and one linear layer.

    `features`: of `vgg.build_vgg`, of which the first layers are taken.
    """

    def __init__(self, clip: Clip, features: nn.Sequential) -> None:
        super().__init__()
        self.clip = clip.drop_image_encoder().requires_grad_(False)
        self.features = features[:N_LAYERS]
        C = int(self.features[-2].weight.shape[0])  # type: ignore[index]
        self.project = nn.Linear(clip.embed_dim, C)
        self.bottleneck = nn.Sequential(*_convolve(C, C), *_convolve(C, C))
        self.up1 = nn.Sequential(*_convolve(C, C), *_convolve(C, C))
        # The last BatchNorm is never run; the released network has it, and the paper of TRIS counts it.
        self.up2 = nn.Sequential(*_convolve(C, 1), nn.Conv2d(1, 1, 3, padding=1))
        self.unused = nn.BatchNorm2d(1)

    def train(self, mode: bool = True) -> WWbL:
        """Return self in training (or evaluation) mode; the text encoder stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return places float (B, C, S/8, S/8) of pixels float (B, 3, S, S)."""
        places: Tensor = self.bottleneck(self.features(pixels))
        return places

    def encode_text(self, features: Tensor) -> Tensor:
        """Return sentences float (N, C), of length 1, of the CLIP's features float (N, E)."""
        return F.normalize(self.project(features), dim=-1)

    def decode(self, places: Tensor, sentences: Tensor) -> Tensor:
        """Return logits float (n, S/2, S/2) of n images float (n, C, S/8, S/8) with a sentence float (n, C) each.

        Each place z becomes z · cos(z, sentence).
        """
        # Differs from WWbL: normalising a place of zeros gives zeros, not NaN.
        attention = torch.einsum("nchw,nc->nhw", F.normalize(places, dim=1), sentences)
        x = self.up1(_double(places * attention[:, None]))
        logits: Tensor = self.up2(_double(x))
        return logits[:, 0]


def _convolve(c_in: int, c_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
