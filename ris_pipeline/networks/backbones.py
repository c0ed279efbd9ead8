"""The image encoders beside CLIP's own: ResNet-50 and Swin-B of ImageNet (TRIS, ICCV 2023, Table 3)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import timm
import torch.nn.functional as F
from timm.models import FeatureListNet
from timm.models.swin_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.networks.weights.clip_weights import copy_tensors, read_weights

TIMM_NAMES = ("resnet50", "swin_base_patch4_window7_224")


class TimmEncoder(nn.Module):
    """A timm network of `TIMM_NAMES` as an `ImageEncoder`: its four stages, no head, no last LayerNorm."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self._is_swin = name.startswith("swin")
        self.model = FeatureListNet(
            network,
            out_indices=(-4, -3, -2, -1),
            output_fmt="NHWC" if self._is_swin else "NCHW",
            flatten_sequential=self._is_swin,
        )
        c1, c2, c3, c4 = (int(channels) for channels in self.model.feature_info.channels())
        self.level_channels = (c1, c2, c3, c4)

    def levels(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c1..c4 of `pixels` float (B, 3, H, W): float (B, C_i, ⌈H/s⌉, ⌈W/s⌉), s = 4, 8, 16, 32."""
        if self._is_swin:  # its patches are 4×4 pixels
            height, width = pixels.shape[-2:]
            pixels = F.pad(pixels, (0, -width % 4, 0, -height % 4))
        levels = self.model(pixels)
        if self._is_swin:  # timm's Swin is NHWC
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        c1, c2, c3, c4 = levels
        return c1, c2, c3, c4

    def grid_side(self, side: int) -> int:
        """Return the cells along a side of c4 for images of `side` pixels."""
        return -(-side // 32)


def load_timm_network(name: str, weights: str | None) -> nn.Module:
    """Return timm's network `name`, one of TIMM_NAMES, without its classifier.

    `weights` is one of timm's tags for that network ("tv_in1k"), which timm downloads, or a local file with
    timm's, torchvision's or Swin's own names; None means random values.
    Raises RisError for an unknown name or tag, and for a file that cannot be read or does not fit.
    """
    if name not in TIMM_NAMES:
        raise RisError(f"{name}: no such image encoder; there are {', '.join(TIMM_NAMES)}")
    if weights is None:
        return _create(name)
    if f"{name}.{weights}" in timm.list_pretrained(f"{name}.*"):
        return _download(name, weights)
    file = Path(weights)
    if not file.is_file():
        tags = ", ".join(full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*"))
        raise RisError(f"{weights}: neither a file nor weights that timm knows for {name} (it knows: {tags})")
    network = _create(name)
    copy_tensors(network, _adapt(name, file, network), file)
    return network


def _create(name: str, pretrained: bool = False) -> nn.Module:
    # Swin at any input size, its windows of 7 shifting in every stage, as in detection: by itself timm fits
    # the last stage to the 7×7 grid of 224 px, and on a larger grid its windows never see each other.
    options = {"strict_img_size": False, "always_partition": True} if name.startswith("swin") else {}
    return cast(nn.Module, timm.create_model(name, pretrained=pretrained, num_classes=0, **options))


def _download(name: str, tag: str) -> nn.Module:
    try:
        return _create(f"{name}.{tag}", pretrained=True)
    except Exception as error:  # whatever the network, the hub or the disk may raise
        raise DownloadError(f"weights {tag} of {name} did not download ({error}): give a local file") from error


def _adapt(name: str, file: Path, network: nn.Module) -> dict[str, Tensor]:
    tensors = read_weights(file).tensors
    if name.startswith("swin"):
        try:
            tensors = checkpoint_filter_fn(tensors, network)
        except (AttributeError, RuntimeError) as error:
            raise RisError(f"{file}: not the weights of {name} ({error})") from error
    return {key: value for key, value in tensors.items() if not key.startswith(("fc.", "head."))}
