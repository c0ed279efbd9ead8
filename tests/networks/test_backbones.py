"""The image encoders from timm: shapes, axis order, odd sizes, and local weights in each naming."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ris_pipeline.errors import RisError
from ris_pipeline.networks import backbones
from ris_pipeline.networks.backbones import TimmEncoder
from ris_pipeline.networks.clip import Clip

RESNET, SWIN = backbones.TIMM_NAMES
SMALL: dict[str, dict[str, Any]] = {
    RESNET: {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)},
    SWIN: {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 1, 1)},
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {"vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    return Clip.from_config(config)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm builds narrow networks with the real ones' names and structure."""
    create_model = timm.create_model

    @functools.wraps(create_model)
    def create_small(name: str, **options: Any) -> nn.Module:
        return create_model(name, **options, **SMALL[name.partition(".")[0]])

    monkeypatch.setattr(timm, "create_model", create_small)


def build(name: str, weights: str | None) -> TimmEncoder:
    return TimmEncoder(name, backbones.load_timm_network(name, weights)).eval()


@pytest.mark.parametrize(
    ("name", "channels", "n_parameters"),
    [(RESNET, (256, 512, 1024, 2048), 23_508_032), (SWIN, (128, 256, 512, 1024), 86_741_176)],
)
def test_real_networks(name: str, channels: tuple[int, ...], n_parameters: int) -> None:
    with torch.device("meta"):  # shapes alone
        encoder = build(name, None)
        levels = encoder.levels(torch.empty(1, 3, 320, 320))
    assert sum(p.numel() for p in encoder.parameters()) == n_parameters
    assert encoder.level_channels == channels
    grids = [(80, 80), (40, 40), (20, 20), (10, 10)]
    assert [tuple(x.shape) for x in levels] == [(1, c, *g) for c, g in zip(channels, grids, strict=True)]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", [RESNET, SWIN])
@pytest.mark.parametrize(
    ("hw", "grids"),
    [((256, 256), [(64, 64), (32, 32), (16, 16), (8, 8)]), ((75, 101), [(19, 26), (10, 13), (5, 7), (3, 4)])],
)
@torch.no_grad()
def test_any_input_size(name: str, hw: tuple[int, int], grids: list[tuple[int, int]]) -> None:
    encoder = build(name, None)
    levels = encoder.levels(torch.rand(2, 3, *hw))
    assert [tuple(level.shape[2:]) for level in levels] == grids
    assert tuple(level.shape[1] for level in levels) == encoder.level_channels
    assert all(level.isfinite().all() for level in levels)


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_swins_levels_are_its_stages_channels_first() -> None:
    encoder, pixels = build(SWIN, None), torch.rand(1, 3, 64, 96)
    x = encoder.model.patch_embed(pixels)  # (1, 16, 24, 8), channels last
    for number, level in enumerate(encoder.levels(pixels)):
        x = encoder.model[f"layers_{number}"](x)
        assert level.shape[1] == x.shape[3]
        torch.testing.assert_close(level[0, :, 1, 2], x[0, 1, 2])


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_swin_sees_across_windows_on_the_deepest_grid() -> None:
    """A 10×10 grid has four windows of 7; the shift must join them."""
    stage = build(SWIN, None).model["layers_3"]
    x = torch.randn(1, 20, 20, 32)
    other = x.clone()
    other[0, 12:14, 12:14] = torch.randn(2, 2, 32)  # cell (6, 6), the last of the first window
    changed = (stage(x) - stage(other)).abs().amax(dim=(0, 3)) > 1e-7
    assert changed[0, 0]
    assert changed[8, 8]  # in another window


def classifier(name: str) -> dict[str, Tensor]:
    stem = "fc" if name == RESNET else "head.fc"
    return {f"{stem}.weight": torch.rand(10, 4), f"{stem}.bias": torch.rand(10)}


def official_swin_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swin's own files merge patches at the end of a stage, timm at the next's start; they keep buffers."""
    renamed = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value
        for key, value in state.items()
    }
    return renamed | {"layers.0.blocks.1.attn_mask": torch.zeros(2), "head.weight": torch.zeros(3, 3)}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("naming", [RESNET, SWIN, "official swin"])
@torch.no_grad()
def test_local_files(tmp_path: Path, naming: str) -> None:
    name = RESNET if naming == RESNET else SWIN
    network = backbones.load_timm_network(name, None)
    for parameter in network.parameters():
        parameter.normal_(std=0.1)
    state = dict(network.state_dict())
    if naming == "official swin":
        torch.save({"model": official_swin_names(state)}, tmp_path / "weights.pth")
    else:
        torch.save(state | classifier(name), tmp_path / "weights.pth")
    loaded = build(name, str(tmp_path / "weights.pth"))
    expected = TimmEncoder(name, network)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(expected.state_dict()))


@pytest.mark.usefixtures("small")
def test_a_tag_is_left_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def fail(name: str, pretrained: bool, **_: Any) -> nn.Module:
        asked.append((name, pretrained))
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(RisError, match="tv_in1k of resnet50 did not download"):
        backbones.load_timm_network(RESNET, "tv_in1k")
    assert asked == [("resnet50.tv_in1k", True)]


@pytest.mark.usefixtures("small")
def test_user_errors(tmp_path: Path) -> None:
    with pytest.raises(RisError, match="resnet51: no such image encoder; timm has resnet51q, resnet50"):
        backbones.load_timm_network("resnet51", None)
    with pytest.raises(RisError, match=r"imagenet: neither a file nor .* ms_in22k"):
        backbones.load_timm_network(SWIN, "imagenet")
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(RisError, match=r"missing: bn1.weight, .* more; misshapen: conv1.weight \(1,\) for"):
        backbones.load_timm_network(RESNET, str(path))
    torch.save({"layers.9.attn.relative_position_bias_table": torch.zeros(1)}, path)
    with pytest.raises(RisError, match="not the weights of swin"):
        backbones.load_timm_network(SWIN, str(path))
