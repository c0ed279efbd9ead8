"""Four levels c1..c4 of image encoders that are no ResNet: timm's pyramids, and ViTs, which have one grid.

A pyramid (ConvNeXt, Swin, hiera, FastViT) has maps at strides 4, 8, 16 and 32. A ViT has one grid, at its patch size:
it is c4, which Step-1 reads, and c1..c3 are its bilinear copies at strides 4, 8 and 16, of which the convolutions of
Step-2's decoder make what they need (after ViTDet, ECCV 2022, whose pyramid also comes of the last map alone).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.errors import RisError

Levels = tuple[Tensor, Tensor, Tensor, Tensor]


def timm_channels(network: Any) -> tuple[int, int, int, int]:
    """Return the channels of c1..c4 of a timm network. Raises RisError where it has no such levels."""
    infos = getattr(network, "feature_info", None)
    name = network.pretrained_cfg.get("architecture", type(network).__name__)
    if not infos or not hasattr(network, "forward_intermediates"):
        raise RisError(f"{name}: this network of timm does not give its inner maps; take another image encoder")
    strides = [int(info["reduction"]) for info in infos]
    if not is_plain(network) and strides[-4:] != [4, 8, 16, 32]:
        found = ", ".join(map(str, strides))
        raise RisError(f"{name}: has maps at strides {found}, not 4, 8, 16, 32; take another image encoder")
    last = [infos[-1]] * 4 if is_plain(network) else infos[-4:]
    c1, c2, c3, c4 = (int(info["num_chs"]) for info in last)
    return c1, c2, c3, c4


def timm_levels(network: Any, pixels: Tensor) -> Levels:
    """Return c1..c4 of a timm network for `pixels` float (B, 3, H, W): float (B, C_i, ⌈H/s⌉, ⌈W/s⌉), s = 4, 8, 16, 32.

    Of a ViT c4 is the grid. What a network cannot read at this size is resized: to whole patches, or to its own size.
    """
    height, width = pixels.shape[-2:]
    n = len(network.feature_info)
    indices = [n - 1] if is_plain(network) else [n - 4, n - 3, n - 2, n - 1]
    seen = resize(pixels, (_seen_side(network, height), _seen_side(network, width)))
    maps = network.forward_intermediates(seen, indices=indices, intermediates_only=True)
    if is_plain(network):
        return copy_grid(maps[0], (height, width))
    c1, c2, c3, c4 = (
        resize(level, _ceil_hw((height, width), s)) for level, s in zip(maps, (4, 8, 16, 32), strict=True)
    )
    return c1, c2, c3, c4


def timm_grid_side(network: Any, side: int) -> int:
    """Return the cells along a side of c4 of a timm network for images of `side` pixels."""
    return _seen_side(network, side) // _patch(network) if is_plain(network) else -(-side // 32)


def is_plain(network: Any) -> bool:
    """Whether a timm network is a ViT with one grid, rather than a pyramid."""
    return len({info["reduction"] for info in network.feature_info}) == 1


def copy_grid(grid: Tensor, image_hw: tuple[int, int]) -> Levels:
    """Return c1..c3, bilinear copies of a ViT's grid float (B, C, h, w) at strides 4, 8, 16, and the grid as c4."""
    c1, c2, c3 = (resize(grid, _ceil_hw(image_hw, stride)) for stride in (4, 8, 16))
    return c1, c2, c3, grid


def whole_patches(side: int, patch: int) -> int:
    """Return the multiple of `patch` pixels that is nearest to `side`, at least one."""
    return max(round(side / patch), 1) * patch


def resize(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Return float (B, C, h, w) of `x` float (B, C, …): bilinear, by pixel centres; itself if it has that size."""
    return x if tuple(x.shape[-2:]) == hw else F.interpolate(x, size=hw, mode="bilinear", align_corners=False)


def _seen_side(network: Any, side: int) -> int:
    """Return the pixels along a side at which a network reads images of `side` pixels."""
    if _reads_any_size(network):
        return whole_patches(side, _patch(network)) if is_plain(network) else side
    return int(network.pretrained_cfg["input_size"][-1])


def _reads_any_size(network: Any) -> bool:
    embedding = getattr(network, "patch_embed", None)
    if getattr(network, "dynamic_img_size", False) or getattr(embedding, "strict_img_size", None) is False:
        return True
    # Positions or windows of one size: hiera, BEiT, MaxViT, and the ViTs that open_clip builds.
    has_own_size = isinstance(getattr(network, "pos_embed", None), nn.Parameter) or hasattr(network, "set_input_size")
    return not has_own_size


def _patch(network: Any) -> int:
    return int(network.feature_info[-1]["reduction"])


def _ceil_hw(hw: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-hw[0] // stride), -(-hw[1] // stride)
