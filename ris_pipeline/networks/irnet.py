"""IRNet (CVPR 2019): class boundaries and displacements to object centres, on a fixed backbone.

The heads are named as in the released code (fc_edge1 … fc_edge6, fc_dp1 … fc_dp7, mean_shift), so a
released res50_irn.pth maps by translating `resnet50.` to `backbone.resnet.` and leaving out its second
names (backbone.*, stage*, edge_layers.*, dp_layers.*, fc_dp7.4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ris_pipeline.networks.parts.stages import StageBackbone


class MeanShift(nn.Module):
    """Displacement minus its mean over the training images: `running_mean`, float32 (2,), 0 until set."""

    running_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))

    def forward(self, displacement: Tensor) -> Tensor:
        """Return the displacement float (B, 2, h, w) less the mean."""
        return displacement - self.running_mean[:, None, None]


class IRNet(nn.Module):
    """Boundary and displacement heads on a backbone that does not learn, BatchNorm statistics fixed."""

    def __init__(self, backbone: StageBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        c1, c2, c3, c4, c5 = backbone.stage_channels
        # Upsampling factors: every boundary branch to stride 4; the deep displacement branches to stride 8 first.
        _, _, s3, s4, s5 = backbone.stage_strides
        self.fc_edge1 = _branch(c1, 32, n_groups=4)
        self.fc_edge2 = _branch(c2, 32, n_groups=4)
        self.fc_edge3 = _branch(c3, 32, n_groups=4, upsample=s3 // 4)
        self.fc_edge4 = _branch(c4, 32, n_groups=4, upsample=s4 // 4)
        self.fc_edge5 = _branch(c5, 32, n_groups=4, upsample=s5 // 4)
        self.fc_edge6 = nn.Conv2d(160, 1, 1)
        self.fc_dp1 = _branch(c1, 64, n_groups=8)
        self.fc_dp2 = _branch(c2, 128, n_groups=16)
        self.fc_dp3 = _branch(c3, 256, n_groups=16)
        self.fc_dp4 = _branch(c4, 256, n_groups=16, upsample=s4 // s3)
        self.fc_dp5 = _branch(c5, 256, n_groups=16, upsample=s5 // s3)
        self.fc_dp6 = _branch(768, 256, n_groups=16, upsample=s3 // 4)
        self.fc_dp7 = nn.Sequential(*_branch(448, 256, n_groups=16), nn.Conv2d(256, 2, 1, bias=False))
        self.mean_shift = MeanShift()

    def train(self, mode: bool = True) -> IRNet:
        """Return self in training (or evaluation) mode; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def boundary_parameters(self) -> list[nn.Parameter]:
        """Return what learns boundaries (IRNet: SGD, learning rate 0.1)."""
        return [p for name, p in self.named_parameters() if name.startswith("fc_edge")]

    def displacement_parameters(self) -> list[nn.Parameter]:
        """Return what learns displacements (IRNet: SGD, learning rate 1.0)."""
        return [p for name, p in self.named_parameters() if name.startswith("fc_dp")]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return boundary logits (B, 1, h, w) and displacements (B, 2, h, w) of pixels (B, 3, H, W).

        h = ⌈H/4⌉. Displacements are (dy, dx) in grid cells, before the mean is taken off: the form that is trained.
        """
        with torch.no_grad():
            stages = self.backbone.stages(pixels)
        return self._boundary_logits(stages), self._displacement(stages)

    def _boundary_logits(self, stages: list[Tensor]) -> Tensor:
        x1, x2, x3, x4, x5 = stages
        # Strided layers round sizes up, so an upsampled map may be larger than the one that it joins.
        h, w = x2.shape[-2:]
        boundaries = (
            self.fc_edge1(x1),
            self.fc_edge2(x2),
            self.fc_edge3(x3),
            self.fc_edge4(x4),
            self.fc_edge5(x5),
        )
        logits: Tensor = self.fc_edge6(torch.cat([boundary[..., :h, :w] for boundary in boundaries], dim=1))
        return logits

    def _displacement(self, stages: list[Tensor]) -> Tensor:
        x1, x2, x3, x4, x5 = stages
        h4, w4 = x2.shape[-2:]
        h8, w8 = x3.shape[-2:]
        deep = (self.fc_dp3(x3), self.fc_dp4(x4), self.fc_dp5(x5))
        fused = self.fc_dp6(torch.cat([branch[..., :h8, :w8] for branch in deep], dim=1))
        field: Tensor = self.fc_dp7(torch.cat([self.fc_dp1(x1), self.fc_dp2(x2), fused[..., :h4, :w4]], dim=1))
        return field

    @torch.no_grad()
    def boundary_displacement(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return boundary probabilities (B, 1, h, w), centred displacements (B, 2, h, w) of (B, 3, H, W).

        h = ⌈H/4⌉. Boundary logits are averaged over the image and its mirror; displacements are the image's.
        """
        stages = self.backbone.stages(torch.cat([pixels, pixels.flip(-1)]))
        straight, mirrored = self._boundary_logits(stages).chunk(2)
        boundary = torch.sigmoid((straight + mirrored.flip(-1)) / 2)
        # Only boundaries are averaged: the mirror image's displacements would be computed for nothing.
        field = self._displacement([stage[: len(pixels)] for stage in stages])
        return boundary, self.mean_shift(field)


def _branch(n_in: int, n_out: int, n_groups: int, upsample: int = 1) -> nn.Sequential:
    """Return 1×1 convolution → GroupNorm → bilinear upsampling, where asked for → ReLU."""
    resize = [nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=False)] if upsample > 1 else []
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 1, bias=False), nn.GroupNorm(n_groups, n_out), *resize, nn.ReLU(inplace=True)
    )
