"""InstanceNorm whose gradient is right for a batch of one image too."""

from __future__ import annotations

from torch import Tensor, nn


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's, mended: on the CPU torch 2.15 takes one image's gradient with channels last for one without."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` float (B, C, h, w) normalised over the positions of each image and channel."""
        normalised = super().forward(input)
        if len(input) == 1 and normalised.requires_grad:
            normalised.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        return normalised
