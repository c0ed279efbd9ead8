"""A ResNet's five stages, of timm or of a CLIP, as IRNet, AMR and GbS read them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ris_pipeline.networks.clip import Clip


class StageBackbone(nn.Module):
    """A network that gives five feature maps, of which the first two have stride 4."""

    stage_channels: tuple[int, ...]
    stage_strides: tuple[int, ...]

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Return five float maps (B, stage_channels[i], H / stage_strides[i], W / …), sizes rounded up."""
        raise NotImplementedError


class ResNetStages(StageBackbone):
    """The stages of a timm ResNet, the last at stride 16 too; the paper's is "resnet50.tv_in1k"."""

    stage_strides = (4, 4, 8, 16, 16)

    def __init__(self, resnet: Any) -> None:
        """Take over `resnet` and set the strides of its layer4 to 1."""
        super().__init__()
        self.resnet = resnet
        self.stage_channels = tuple(info["num_chs"] for info in resnet.feature_info)
        for module in resnet.layer4.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Return the stem's map and those of layer1..4, as `StageBackbone`."""
        net = self.resnet
        maps = [net.maxpool(net.act1(net.bn1(net.conv1(pixels))))]
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            maps.append(layer(maps[-1]))
        return maps


class ClipStages(StageBackbone):
    """The stages of a CLIP-ResNet.

    The last one keeps its stride: to lower it would change the network under the other users of this CLIP.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.visual = clip.model.visual
        self.stage_strides = (4, 4, 8, 16, clip.last_stride)
        self.stage_channels = (self.visual.conv3.out_channels, *clip.level_channels)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Return the stem's map and those of layer1..4, as `StageBackbone`."""
        # The average pools round sizes down, so the last row and column would get no feature.
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (0, -width % 32, 0, -height % 32))
        net = self.visual
        maps = [net.stem(padded)]
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            maps.append(layer(maps[-1]))
        return [
            feature[..., : -(-height // stride), : -(-width // stride)]
            for feature, stride in zip(maps, self.stage_strides, strict=True)
        ]
