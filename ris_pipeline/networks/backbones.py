"""The image encoders beside CLIP's own: networks of timm. The paper's are ResNet-50 and Swin-B (ICCV 2023, Table 3)."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

import timm
import torch.nn.functional as F
from timm.models import FeatureListNet
from timm.models.swin_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from ris_pipeline.datasets.io.images import IMAGENET_MEAN, IMAGENET_STD, renormalise
from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.networks.parts.levels import Levels, timm_channels, timm_grid_side, timm_levels
from ris_pipeline.networks.weights.tensors import copy_tensors, read_weights

TIMM_NAMES = ("resnet50", "swin_base_patch4_window7_224")  # the paper's


class TimmEncoder(nn.Module):
    """One of the paper's two as an `ImageEncoder`: its four stages, no head, no last LayerNorm."""

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

    def levels(self, pixels: Tensor) -> Levels:
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


class AnyTimmEncoder(nn.Module):
    """Any other network of timm as an `ImageEncoder`, reading images by the mean and deviation that it was made for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network
        self.level_channels = timm_channels(network)
        settings = cast(dict[str, Any], network.pretrained_cfg)
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])

    def levels(self, pixels: Tensor) -> Levels:
        """Return c1..c4 of `pixels` float (B, 3, H, W), as `timm_levels`."""
        if (self.mean, self.std) != (IMAGENET_MEAN, IMAGENET_STD):
            pixels = renormalise(pixels, self.mean, self.std)
        return timm_levels(self.model, pixels)

    def grid_side(self, side: int) -> int:
        """Return the cells along a side of c4 for images of `side` pixels."""
        return timm_grid_side(self.model, side)


def load_timm_encoder(name: str, weights: str | None) -> TimmEncoder | AnyTimmEncoder:
    """Return the image encoder of timm called `name`; `weights` and errors as for `load_timm_network`."""
    network = load_timm_network(name, weights)
    return TimmEncoder(name, network) if name in TIMM_NAMES else AnyTimmEncoder(network)


def load_timm_network(name: str, weights: str | None) -> nn.Module:
    """Return timm's network `name` without its classifier.

    `weights` is one of timm's tags for that network ("tv_in1k"), which timm downloads, or a local file with
    timm's, torchvision's or Swin's own names; None means random values.
    Raises RisError for an unknown name or tag, and for a file that cannot be read or does not fit.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise RisError(f"{name}: no such image encoder; timm has {', '.join(near) or 'none like that'}")
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
    if name.startswith("swin"):
        # Swin at any input size, its windows shifting in every stage, as in detection: by itself timm fits the last
        # stage to the grid of its own size, and on a larger grid its windows never see each other.
        options = {"strict_img_size": False, "always_partition": True}
        return cast(nn.Module, timm.create_model(name, pretrained=pretrained, num_classes=0, **options))
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    except TypeError:  # no ViT with positions that can be resized
        network = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return cast(nn.Module, network)


def _download(name: str, tag: str) -> nn.Module:
    try:
        return _create(f"{name}.{tag}", pretrained=True)
    except Exception as error:  # whatever the network, the hub or the disk may raise
        raise DownloadError(
            f"weights {tag} of {name} did not download ({error}): give a local file by irn_weights or "
            "image_encoder_weights (docs/weights.md)"
        ) from error


def _adapt(name: str, file: Path, network: nn.Module) -> dict[str, Tensor]:
    tensors = read_weights(file).tensors
    if name.startswith("swin"):
        try:
            tensors = checkpoint_filter_fn(tensors, network)
        except (AttributeError, RuntimeError) as error:
            raise RisError(f"{file}: not the weights of {name} ({error})") from error
    own = network.state_dict()
    heads = ("fc.", "head.", "classifier.")  # whose other parts, such as a norm, may be the network's
    return {key: value for key, value in tensors.items() if key in own or not key.startswith(heads)}
