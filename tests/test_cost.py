"""Counts against the paper's, against fvcore's of the released code, and against sums done by hand."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from paper_macs import attend_as_released, count_as_paper, count_run_as_paper
from ris_pipeline import cost
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.cost import (
    count_macs,
    count_method,
    count_network,
    count_parts,
    is_papers,
    measure_cost,
    measure_method,
    measure_parts,
)
from ris_pipeline.methods import METHODS, amr
from ris_pipeline.methods.configs import AmrConfig
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import build_step1, build_step2
from ris_pipeline.networks.parts.pixel_attention import PixelAttention
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from tiny import TINY


@pytest.fixture(scope="module")
def networks():
    """Step-1 and Step-2 of the paper, without values."""
    with torch.device("meta"):
        step1 = build_step1("RN50-quickgelu", hidden=1024)
        return step1.eval(), build_step2("RN50-quickgelu", widths=(64, 128, 256, 512)).eval()


@pytest.fixture(scope="module")
def counts(networks):
    """Of both, {part: (parameters, multiply-accumulates)}."""
    return [{name: numbers for name, *numbers in count_parts(network, 320)} for network in networks]


def test_parameters_are_those_of_the_released_checkpoints(counts):
    step1, step2 = counts
    assert step1["all"][0] == 113_559_906
    assert step2["all"][0] == 142_085_869  # the paper's 142.09 M
    assert step1["bilateral prompt"][0] == 8_404_992
    # the paper's 115.66 M have one more projection than the released Step-1
    assert round((step1["all"][0] + 2048 * 1024 + 1024) / 1e6, 2) == 115.66


def test_counted_the_papers_way_the_macs_are_the_papers(networks):
    """To the last digit what fvcore 0.1.5 gives for the released code at 1×3×320×320 and 1×20; paper: 12.40, 21.26."""
    assert [count_as_paper(network, 320)["all"] for network in networks] == [12_398_450_688, 21_250_723_840]


def test_parts_by_hand(counts):
    step1, step2 = ({name: macs for name, (_, macs) in of_network.items()} for of_network in counts)
    T, hw, C = 20, 100, 1024
    # 12 layers of width 512: Q, K, V, output and an MLP four times as wide; two products of attention; projection
    text = 12 * (12 * 512**2 * T + 2 * T * T * 512) + 512 * 1024
    assert step1["text encoder"] == step2["text encoder"] == text
    assert step1["unused of CLIP"] == step2["unused of CLIP"] == 0
    # 4 convolutions, 4 linear layers, 4 products, without those that one text makes constant
    assert step1["bilateral prompt"] == 2 * hw * C * C + 2 * C * C + 2 * hw * C
    assert step1["projections"] == hw * 2048 * C + 1024 * C
    assert step1["score"] == hw * C
    # per level: 3 convolutions on positions, 3 on words, 2 products
    levels = [(1600, 512), (400, 1024), (100, 2048)]
    products = sum(2 * n * c * T + 2 * c * 512 * T for n, c in levels)
    assert step2["word attention"] == products + sum((3 * n + T) * c * c for n, c in levels)


def test_parts_add_up(counts):
    for of_network in counts:
        *parts, whole = of_network.values()
        assert [sum(column) for column in zip(*parts, strict=True)] == whole


def test_another_image_encoder():
    """Swin-B: CLIP's own image encoder is not used."""
    widths = (64, 128, 256, 512)
    with torch.device("meta"):
        network = build_step2("RN50-quickgelu", widths=widths, image_encoder="swin_base_patch4_window7_224")
    parts = {name: n_parameters for name, n_parameters, _ in count_parts(network.eval(), 320)}
    assert parts["all"] == sum(p.numel() for p in network.parameters())
    assert 80e6 < parts["image encoder"] < 90e6  # Swin-B has 88 M, its classifier included


def test_only_what_shapes_a_network_makes_it_another_than_the_papers():
    assert is_papers(Step1Config(lr=1.0, clip_weights=None))
    assert not is_papers(Step1Config(hidden=512))
    assert not is_papers(Step2Config(image_encoder="resnet50"))


def test_the_word_attention_as_released_agrees_with_the_one_in_use():
    torch.manual_seed(0)
    attention = PixelAttention(6, 4).double()
    V, words = torch.randn(2, 6, 3, 5, dtype=torch.double), torch.randn(2, 7, 4, dtype=torch.double)
    torch.testing.assert_close(attend_as_released(attention, V, words), attention(V, words))


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Clip.from_config(TINY).eval()


@pytest.mark.parametrize(("kind", "sizes"), [(Step1, {"hidden": 8}), (Step2, {"widths": (4, 4, 4, 4)})])
def test_time(kind, sizes, tiny, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock) / 1000)  # every call takes a millisecond
    network = kind(tiny, tiny, **sizes).eval()
    passes = []
    *parts, whole = measure_parts(network, 64, "fp32", lambda: passes.append(1))
    assert len(passes) == cost.WARM_UP + cost.REPEATS
    assert parts.count(0) == 1  # what is not used takes no time
    assert [ms for ms in parts if ms] == pytest.approx([1] * (len(parts) - 1))
    assert whole == pytest.approx(len(parts) - 1)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_what_is_timed_runs_in_the_precision_asked_for(precision, dtype, tiny, monkeypatch):
    monkeypatch.setattr(cost, "REPEATS", 1)
    network = Step1(tiny, tiny, hidden=8).eval()
    dtypes = []
    network.vis_project.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    measure_parts(network, 64, precision, lambda: None)
    assert set(dtypes) == {dtype}
    assert len(dtypes) > cost.WARM_UP + cost.REPEATS  # in each pass, beside what only prepares the parts


def test_a_configuration_is_measured(tiny_clip, monkeypatch):
    monkeypatch.setattr(cost, "REPEATS", 1)
    config = Step1Config(clip=str(tiny_clip), hidden=16, input_size=64, project_from_clip=True)
    *parts, whole = measure_cost(config, torch.device("cpu"), "fp32", lambda: None)
    by_name = {part.part: part for part in parts}
    assert by_name["projections"].parameters == 16 * (256 + 1) + 16 * (16 + 1)
    assert whole.ms > by_name["image encoder"].ms > 0
    assert whole.macs == sum(part.macs for part in parts) > 0
    assert count_network(config) == (whole.parameters, whole.macs)


def test_a_method_is_measured_as_a_whole(tiny_clip, monkeypatch):
    monkeypatch.setattr(cost, "REPEATS", 1)
    config = AmrConfig(backbone=str(tiny_clip), clip=str(tiny_clip), input_size=64, hidden=5)
    passes = []
    found = measure_method(METHODS["amr"], config, torch.device("cpu"), "fp32", lambda: passes.append(1))
    network = amr.build(replace(config, backbone_weights=None, clip_weights=None), None)
    pixels, tokens = torch.randn(1, 3, 64, 64), network.clip.tokenize([cost.SENTENCE])
    assert (tokens != 0).all()  # the sentence fills all 20 tokens
    images = [count_macs(partial(network.encode_image, pixels, branch)) for branch in ("spotlight", "compensation")]
    text = count_macs(partial(network.encode_text, tokens))
    answer = 2 * 5 * 2 * 2  # ⟨V, T⟩ in both branches: 5 channels, 2×2 cells
    assert found.macs == sum(sum(part.values()) for part in (*images, text)) + answer
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert count_method(METHODS["amr"], config) == (found.parameters, found.macs)
    assert found.ms > 0
    assert len(passes) == cost.WARM_UP + 1


def test_amr_multiplies_as_often_as_table_2_says():
    """27.88 G: two branches with their heads on the 20×20 grid, and a sentence of 20 tokens."""
    with torch.device("meta"):
        network = amr.build(AmrConfig(backbone_weights=None, clip_weights=None), None)
        pixels, tokens = torch.randn(1, 3, 320, 320), torch.arange(1, 21)[None]
    runs = [partial(network.encode_image, pixels, branch) for branch in ("spotlight", "compensation")]
    n = sum(map(count_run_as_paper, runs))
    n += count_run_as_paper(partial(network.clip.words, tokens), {torch.ops.aten.bmm})
    n += 1024 * 1024  # the layer for texts
    assert round(n / 1e9, 2) == 27.88


def test_the_command(tiny_clip, tmp_path, call_ris, capsys, monkeypatch):
    monkeypatch.setattr(cost, "REPEATS", 1)
    monkeypatch.setattr(cost, "WARM_UP", 0)
    # The paper's networks are too large to be timed in a test: small ones stand for them.
    monkeypatch.setattr("stages.cost.PAPER", {})
    (tmp_path / "mine.toml").write_text(
        f'name = "mine"\nformat = "pairs"\nannotations = "a"\nimages = "b"\n[splits]\ntrain = "any"\n'
        f'[config.step1]\nclip = "{tiny_clip}"\n[config.step2]\nclip = "{tiny_clip}"\n'
    )
    options = ["--dataset", tmp_path / "mine.toml", "--device", "cpu", "--quiet", "--set", "input_size=64"]
    assert call_ris("cost", *options, "--set", "hidden=16", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["network"], first["stage"], second["stage"]) == ("mine", "step1", "step2")
    assert first["parts"][-1]["ms"] > 0
    assert call_ris("cost", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Step-2 (mine, 64 px)" in "\n".join(lines)
    assert max(map(len, lines)) <= 120
    assert call_ris("cost", *options, "--set", "hiden=16") == 1
    assert "did you mean 'hidden'" in capsys.readouterr().err


def test_the_command_with_the_compared_methods(call_ris, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost, "REPEATS", 1)
    monkeypatch.setattr(cost, "WARM_UP", 0)
    monkeypatch.setattr("stages.cost.PAPER", {})
    monkeypatch.setattr("ris_pipeline.methods.METHODS", {name: METHODS[name] for name in ("tris", "amr")})
    options = ["--dataset", "refcoco", "--runs", tmp_path, "--device", "cpu", "--quiet", "--methods"]
    assert call_ris("cost", *options, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["network"], found["stage"], found["input_size"]) == ("paper", "amr", 320)
    assert (found["parts"][0]["part"], found["parts"][0]["parameters"]) == ("all", 118_482_800)
    assert (found["paper"]["params"], found["paper"]["macs"]) == (156.87, 27.88)
    assert call_ris("cost", *options) == 0
    out = capsys.readouterr().out
    assert "AMR (paper, 320 px)" in out
    assert "156.87 M" in out
    assert "\nAMR: with the image encoder of its CLIP, which is not used, 156.80 M; " in out
