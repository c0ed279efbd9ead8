"""Counts against the paper's, against fvcore's of the released code, and against sums done by hand."""

import json

import pytest
import torch

from ris_pipeline import cost
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.cost import count_parts, measure_parts, pixel_attention_as_released, pool_as_released
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import build_step1, build_step2
from ris_pipeline.networks.parts.pixel_attention import PixelAttention
from ris_pipeline.networks.parts.pooling import attention_pool
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from tiny import TINY


@pytest.fixture(scope="module")
def step1():
    with torch.device("meta"):
        network = build_step1(Step1Config(clip_weights=None)).eval()
    return {one.part: one for one in count_parts(network, 320)}


@pytest.fixture(scope="module")
def step2():
    with torch.device("meta"):
        network = build_step2(Step2Config(clip_weights=None)).eval()
    return {one.part: one for one in count_parts(network, 320)}


def test_parameters_are_those_of_the_released_checkpoints(step1, step2):
    assert step1["all"].parameters == 113_559_906
    assert step2["all"].parameters == 142_085_869  # the paper's 142.09 M
    assert step1["bilateral prompt"].parameters == 8_404_992
    # the paper's 115.66 M have one more projection than the released Step-1
    assert round((step1["all"].parameters + 2048 * 1024 + 1024) / 1e6, 2) == 115.66


def test_macs_are_the_papers(step1, step2):
    """12.40 G and 21.25 G as fvcore counts, 13.87 G and 22.71 G in full.

    To the last digit they are what fvcore 0.1.5 gives for the released code (model_stage1.py and model_stage2.py on
    random values, 1×3×320×320 and 1×20).
    """
    assert step1["all"].macs_fvcore == 12_398_450_688
    assert step2["all"].macs_fvcore == 21_250_723_840
    assert round(step1["all"].macs_released / 1e9, 2) == 13.87
    assert round(step2["all"].macs_released / 1e9, 2) == 22.71


def test_parts_by_hand(step1, step2):
    T, hw, C = 20, 100, 1024
    # 12 layers of width 512: Q, K, V, output and an MLP four times as wide; two products of attention; projection
    text = 12 * (12 * 512**2 * T + 2 * T * T * 512) + 512 * 1024
    pooling = (hw + 1) * (3 * 2048**2 + 2048 * 1024) + 2 * (hw + 1) ** 2 * 2048
    assert step1["text encoder"].macs == step2["text encoder"].macs == text
    for network in (step1, step2):
        assert network["unused of CLIP"].macs == 0
        assert network["unused of CLIP"].macs_released == pooling
        assert network["unused of CLIP"].macs_fvcore == 0
        assert network["image encoder"].macs == network["image encoder"].macs_released
    # one text: 4 convolutions, 4 linear layers, 4 products; here without those that one text makes constant
    assert step1["bilateral prompt"].macs_released == 4 * hw * C * C + 4 * C * C + 4 * hw * C
    assert step1["bilateral prompt"].macs == 2 * hw * C * C + 2 * C * C + 2 * hw * C
    assert step1["projections"].macs == hw * 2048 * C + 1024 * C
    assert step1["score"].macs == hw * C
    # per level: 4 convolutions on positions, 2 on words, 2 products; here one of the four is on words
    levels = [(1600, 512), (400, 1024), (100, 2048)]
    products = sum(2 * n * c * T + 2 * c * 512 * T for n, c in levels)
    assert step2["word attention"].macs_released == products + sum(4 * n * c * c for n, c in levels)
    assert step2["word attention"].macs == products + sum((3 * n + T) * c * c for n, c in levels)


def test_parts_add_up(step1, step2):
    for network in (step1, step2):
        *parts, whole = network.values()
        for column in ("parameters", "macs", "macs_released", "macs_fvcore"):
            assert sum(getattr(part, column) for part in parts) == getattr(whole, column)


def test_another_image_encoder():
    """Swin-B: CLIP's own image encoder is not used, and no pooling of it runs."""
    with torch.device("meta"):
        network = build_step2(
            Step2Config(clip_weights=None, image_encoder="swin_base_patch4_window7_224", image_encoder_weights=None)
        )
    parts = {one.part: one for one in count_parts(network.eval(), 320)}
    assert parts["all"].parameters == sum(p.numel() for p in network.parameters())
    assert parts["unused of CLIP"].macs_released == 0
    assert 80e6 < parts["image encoder"].parameters < 90e6  # Swin-B has 88 M, its classifier included


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Clip.from_config(TINY).eval()


def test_the_pooling_as_released_agrees_with_the_one_in_use(tiny):
    pooling, c4 = tiny.model.visual.attnpool, torch.randn(2, 256, 2, 2)
    torch.nn.init.zeros_(pooling.positional_embedding)  # which the counted one leaves out
    torch.testing.assert_close(pool_as_released(pooling, c4)[0], attention_pool(pooling, c4), rtol=1e-4, atol=1e-6)


def test_the_word_attention_as_released_agrees_with_the_one_in_use():
    torch.manual_seed(0)
    attention = PixelAttention(6, 4).double()
    V, words = torch.randn(2, 6, 3, 5, dtype=torch.double), torch.randn(2, 7, 4, dtype=torch.double)
    torch.testing.assert_close(pixel_attention_as_released(attention, V, words), attention(V, words))


@pytest.mark.parametrize("kind", [Step1, Step2])
def test_time(kind, tiny, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock) / 1000)  # every call takes a millisecond
    network = kind(tiny, tiny).eval()
    passes = []
    *parts, whole = measure_parts(network, 64, lambda: passes.append(1))
    assert len(passes) == cost.WARM_UP + cost.REPEATS
    assert parts.count(0) == 1  # what is not used takes no time
    assert [one for one in parts if one] == pytest.approx([1] * (len(parts) - 1))
    assert whole == pytest.approx(len(parts) - 1)


def test_the_command(tiny_clip, tmp_path, call_ris, capsys, monkeypatch):
    monkeypatch.setattr(cost, "REPEATS", 1)
    monkeypatch.setattr(cost, "WARM_UP", 0)
    # The paper's networks are too large to be timed in a test: small ones stand for them.
    monkeypatch.setattr("stages.cost.paper_networks", dict)
    (tmp_path / "mine.toml").write_text(
        f'name = "mine"\nformat = "pairs"\nannotations = "a"\nimages = "b"\n[splits]\ntrain = "any"\n'
        f'[config.step1]\nclip = "{tiny_clip}"\n[config.step2]\nclip = "{tiny_clip}"\n'
    )
    options = ["--dataset", tmp_path / "mine.toml", "--device", "cpu", "--quiet", "--set", "input_size=64"]
    assert call_ris("cost", *options, "--set", "hidden=16", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["network"], first["stage"], second["stage"]) == ("mine", "step1", "step2")
    assert {part["part"]: part for part in first["parts"]}["projections"]["parameters"] == 16 * (256 + 1) + 16 * (
        16 + 1
    )
    assert first["parts"][-1]["ms"] > 0
    assert call_ris("cost", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Step-2 (mine, 64 px)" in "\n".join(lines)
    assert max(map(len, lines)) <= 120
    assert call_ris("cost", *options, "--set", "hiden=16") == 1
    assert "did you mean 'hidden'" in capsys.readouterr().err
