"""Levels of timm's families, small members with random values: strides, channels, sizes, statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ris_pipeline.datasets.io.images import renormalise
from ris_pipeline.errors import RisError
from ris_pipeline.networks.backbones import load_timm_encoder
from ris_pipeline.networks.parts.levels import copy_grid, whole_patches

PYRAMIDS = {
    "convnext_atto": (40, 80, 160, 320),
    "convnextv2_atto": (40, 80, 160, 320),
    "swin_tiny_patch4_window7_224": (96, 192, 384, 768),
    "swinv2_tiny_window8_256": (96, 192, 384, 768),
    "hiera_tiny_224": (96, 192, 384, 768),
    "fastvit_t8": (48, 96, 192, 384),
    "resnet18": (64, 128, 256, 512),
}
VITS = {  # channels, patch
    "vit_tiny_patch16_224": (192, 16),
    "vit_small_patch14_reg4_dinov2": (384, 14),
    "vit_small_patch16_dinov3": (384, 16),
    "eva02_tiny_patch14_224": (192, 14),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_pyramid_has_four_strides(name: str) -> None:
    with torch.device("meta"):  # shapes alone
        encoder = load_timm_encoder(name, None).eval()
        levels = encoder.levels(torch.empty(1, 3, 160, 160))
    assert encoder.level_channels == PYRAMIDS[name]
    assert [tuple(level.shape[1:]) for level in levels] == [
        (c, side, side) for c, side in zip(PYRAMIDS[name], (40, 20, 10, 5), strict=True)
    ]
    assert encoder.grid_side(160) == 5


@pytest.mark.parametrize("name", VITS)
def test_of_a_vit_the_last_level_is_the_grid_of_its_patches(name: str) -> None:
    channels, patch = VITS[name]
    with torch.device("meta"):
        encoder = load_timm_encoder(name, None).eval()
        levels = encoder.levels(torch.empty(1, 3, 160, 160))
    side = round(160 / patch)
    assert encoder.level_channels == (channels,) * 4
    assert [tuple(level.shape[1:]) for level in levels] == [(channels, s, s) for s in (40, 20, 10, side)]
    assert encoder.grid_side(160) == side


@torch.no_grad()
def test_a_vit_reads_by_its_own_statistics_and_sees_where_things_are() -> None:
    torch.manual_seed(0)
    encoder = load_timm_encoder("vit_tiny_patch16_224", None).eval()
    network: Any = encoder.model
    pixels = torch.randn(1, 3, 96, 96)
    levels = encoder.levels(pixels)
    own = renormalise(pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # timm's for this network
    expected = network.forward_features(own)[:, 1:].transpose(1, 2).unflatten(2, (6, 6))
    grid = network.forward_intermediates(own, indices=[11], intermediates_only=True, norm=True)[0]
    torch.testing.assert_close(grid, expected)  # tokens in rows, the class token left out
    raw = network.forward_intermediates(own, indices=[11], intermediates_only=True)[0]
    torch.testing.assert_close(levels[3], raw)


def test_copies_of_a_grid_keep_its_places() -> None:
    grid = torch.zeros(1, 1, 4, 4)
    grid[0, 0, 1, 2] = 1
    c1, c2, c3, c4 = copy_grid(grid, (64, 64))
    assert (c1.shape[-1], c2.shape[-1], c3.shape[-1]) == (16, 8, 4)
    assert c4 is grid
    assert int(c1[0, 0].argmax()) in [16 * y + x for y in (5, 6) for x in (9, 10)]  # the middle of cell (1, 2)
    assert [whole_patches(side, 14) for side in (5, 160, 224, 320)] == [14, 154, 224, 322]


def test_networks_without_such_levels_are_refused_by_name() -> None:
    with torch.device("meta"):
        for name, match in (
            ("levit_128s", "levit_128s: has maps at strides 16, 32, 64"),
            ("resnet51", "resnet51.*resnet5"),
        ):
            with pytest.raises(RisError, match=match):
                load_timm_encoder(name, None)
