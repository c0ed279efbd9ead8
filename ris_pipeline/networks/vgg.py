"""VGG-16's convolutions (Simonyan and Zisserman, 2015), from torchvision: what GbS and WWbL see an image with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights, VGG16_Weights
from torchvision.models.vgg import make_layers

from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.networks.weights.tensors import copy_tensors, read_weights

_TAGS = {"vgg16": VGG16_Weights, "vgg16_bn": VGG16_BN_Weights}
_PREFIX = "features."  # of the convolutions in torchvision's files; the classifier is not used


def build_vgg(name: Literal["vgg16", "vgg16_bn"], width: int, weights: str | None) -> nn.Sequential:
    """Return the convolutions and pools of VGG-16, their first layer of `width` channels: 64 in VGG, 512 at the end.

    `weights`: one of torchvision's tags ("IMAGENET1K_V1"), which torchvision downloads, a local file with its names,
    or None for random values. Images are normalised by ImageNet's statistics.
    Raises RisError for an unknown tag, and for a file that cannot be read or does not fit.
    """
    w = width
    stages = (w, w), (2 * w, 2 * w), (4 * w,) * 3, (8 * w,) * 3, (8 * w,) * 3
    layers = [layer for stage in stages for layer in (*stage, "M")]
    features: nn.Sequential = make_layers(layers, batch_norm=name == "vgg16_bn")
    for module in features:
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    if weights is not None:
        tags = _TAGS[name].__members__
        file = Path(weights)
        if weights not in tags and not file.is_file():
            raise RisError(
                f"{weights}: neither a file nor weights that torchvision knows for {name}: {', '.join(tags)}"
            )
        tensors = _download(name, weights) if weights in tags else read_weights(file).tensors
        own = {key.removeprefix(_PREFIX): value for key, value in tensors.items() if key.startswith(_PREFIX)}
        copy_tensors(features, own, file)
    return features


def compute_levels(features: nn.Sequential, pixels: Tensor) -> list[Tensor]:
    """Return what each pool gives of `pixels` float (B, 3, H, W): float (B, C_i, H/s, W/s), s = 2, 4, …, 32."""
    levels = []
    x = pixels
    for layer in features:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            levels.append(x)
    return levels


def _download(name: str, tag: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = _TAGS[name][tag].get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # whatever the network or the disk may raise
        raise DownloadError(
            f"weights {tag} of {name} did not download ({error}): give a local file by vgg_weights"
        ) from error
    return tensors
