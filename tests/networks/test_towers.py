"""Step-1, PRMS and Step-2 on open_clip's families of today: random values, small members as folders on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.profiler import profile

from ris_pipeline.config import Step1Config, Step2Config, record_settings
from ris_pipeline.datasets.io.images import renormalise
from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.maps.select import encode_masked
from ris_pipeline.networks.backbones import load_timm_encoder
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import build_step1
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.networks.weights.clip_weights import load_clip
from ris_pipeline.process.device import autocast

TEXT = {"vocab_size": 49408, "context_length": 77, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
SENTENCES = ["the red circle", "a star on the left"]


def tower(name: str, text: dict[str, Any] | None = None, **timm: Any) -> dict[str, Any]:
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "timm_proj": "linear", "image_size": 224} | timm
    return {"embed_dim": 12, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT | (text or {})}


FAMILIES = {
    "ViT-B/16": {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT},
    "SigLIP": tower(
        "vit_tiny_patch16_224",
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "context_length": 24, "vocab_size": 49408},
    ),
    "EVA": tower("eva02_tiny_patch14_224", timm_pool="token"),
    "MobileCLIP": tower("fastvit_t8", {"no_causal_mask": True}, timm_pool="avg", image_size=256),
    "ConvNeXt": tower("convnext_atto", timm_pool="avg"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def clip(request: pytest.FixtureRequest) -> Clip:
    torch.manual_seed(0)
    return Clip.from_config(FAMILIES[request.param], 20, mean=(0.5,) * 3, std=(0.5,) * 3).eval()


@torch.no_grad()
def test_the_sentence_is_open_clips(clip: Clip) -> None:
    tokens = clip.tokenize(SENTENCES)
    assert tokens.shape[1] == (clip.model.context_length if clip.reads_padding else 20)
    whole = torch.zeros(2, clip.model.context_length, dtype=torch.int64)
    whole[:, : tokens.shape[1]] = tokens
    expected = clip.model.encode_text(whole)
    torch.testing.assert_close(clip.words(tokens)[1], expected)
    torch.testing.assert_close(clip.encode_text(tokens), expected)


@torch.no_grad()
def test_prms_reads_by_the_models_own_statistics(clip: Clip) -> None:
    pixels = torch.randn(1, 3, clip.image_size, clip.image_size)
    everything = torch.full((1, 1, 1), 1.0)  # a map that keeps the whole image
    seen = encode_masked(everything, pixels, clip, "relu")
    is_openais = not hasattr(clip.model, "text")  # as TRIS, which gives its CLIPs ImageNet's
    own = pixels if is_openais else renormalise(pixels, (0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(seen, clip.model.encode_image(own, normalize=True), rtol=1e-4, atol=1e-5)


def write_folder(folder: Path, family: str, **model: Any) -> str:
    folder.mkdir()
    config = FAMILIES[family] | model
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": statistics}))
    torch.manual_seed(0)
    state = Clip.from_config(config).model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
    return str(folder)


def test_both_networks_learn_on_it(clip: Clip) -> None:
    pixels, tokens = torch.randn(2, 3, 96, 96), clip.tokenize(SENTENCES)
    step1, step2 = Step1(clip, clip, hidden=8), Step2(clip, clip, widths=(4, 4, 4, 4))
    S = step1(pixels, tokens)
    side = step1.grid_side(96)
    assert S.shape == (2, 2, side, side)
    logits = step2(pixels, tokens)
    assert logits.shape == (2, 96, 96)
    first = next(p for name, p in clip.model.visual.named_parameters() if p.ndim == 4)
    for output in (S, logits):
        clip.zero_grad()
        output.sum().backward()
        assert first.grad is not None
        assert first.grad.abs().sum() > 0


BACKBONES = (
    "convnext_atto", "swin_tiny_patch4_window7_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3",
    "hiera_tiny_224",
)  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_both_networks_learn_on_a_backbone_of_timm(name: str) -> None:
    torch.manual_seed(0)
    text, encoder = Clip.from_config(FAMILIES["ViT-B/16"], 20), load_timm_encoder(name, None)
    pixels, tokens = torch.randn(2, 3, 96, 96), text.tokenize(SENTENCES)
    step1, step2 = Step1(text, encoder, hidden=8), Step2(text, encoder, widths=(4, 4, 4, 4))
    side = step1.grid_side(96)
    S, logits = step1(pixels, tokens), step2(pixels, tokens)
    assert S.shape == (2, 2, side, side)
    assert logits.shape == (2, 96, 96)
    first = next(p for p in encoder.parameters() if p.ndim == 4)
    for output in (S, logits):
        encoder.zero_grad()
        output.sum().backward()
        assert first.grad is not None
        assert torch.isfinite(first.grad).all()
        assert first.grad.abs().sum() > 0


@torch.no_grad()
def test_a_folder_as_the_hub_has_it(tmp_path: Path) -> None:
    name = write_folder(tmp_path / "clip", "ConvNeXt")
    clip, again = load_clip(name, "openai"), build_step1(name, hidden=8, clip_weights="openai").clip
    assert (clip.mean, clip.std) == ((0.5,) * 3, (0.25,) * 3)
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), again.parameters(), strict=True))
    config = FAMILIES["ConvNeXt"] | {"vision_cfg": FAMILIES["ConvNeXt"]["vision_cfg"] | {"timm_model_pretrained": True}}
    (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(RisError, match="timm_model_pretrained: asks for what is not in the folder"):
        load_clip(name)


def test_a_model_with_its_own_tokenizer_reads_it_from_the_folder(tmp_path: Path) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = ["<pad>", "<eos>", "<unk>", "the", "red", "circle", "star"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    text = FAMILIES["SigLIP"]["text_cfg"] | {"vocab_size": 7, "context_length": 6}
    folder = tmp_path / "clip"
    with pytest.raises(RisError, match="7 tokens, not the 49408"):
        write_folder(tmp_path / "without", "SigLIP", text_cfg=text)
    folder.mkdir()
    model = FAMILIES["SigLIP"] | {"text_cfg": text | {"hf_tokenizer_name": "far/away"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(DownloadError, match=r"the tokenizer of .* is not here"):
        load_clip(str(folder))
    own.save_pretrained(folder)
    with pytest.raises(RisError, match="no such file"):
        load_clip(str(folder))
    clip = Clip.from_config(model, 20, tokenizer=open_clip.get_tokenizer(f"local-dir:{folder}"))
    save_file(clip.model.state_dict(), folder / "model.safetensors")
    clip = load_clip(str(folder))
    assert clip.tokenize(["the red circle", "the moon"]).tolist() == [[3, 4, 5, 1, 0, 0], [3, 2, 1, 0, 0, 0]]
    assert clip.find_cut(["the star", "the red red red red circle"]) == ["the red red red red circle"]
    assert not clip.latin_only


def test_texts_that_are_not_read_are_refused_in_a_line() -> None:
    with pytest.raises(RisError, match="Hugging Face"):
        load_clip("xlm-roberta-base-ViT-B-32")
    with pytest.raises(RisError, match="CoCa"):
        load_clip("coca_ViT-B-32")


def test_the_context_is_an_option_that_leaves_old_artifacts_as_they_are() -> None:
    for cls in (Step1Config, Step2Config):
        assert "n_tokens" not in record_settings(cls())
        assert record_settings(cls(n_tokens=40))["n_tokens"] == 40
    assert build_step1("shapes", hidden=4, n_tokens=12).clip.tokenize(["a"]).shape == (1, 12)
    with pytest.raises(RisError, match="n_tokens must be 2 to"):
        build_step1("shapes", hidden=4, n_tokens=500)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_positions_first_changes_no_value_and_multiplies_a_frozen_weight_once(precision):
    clip = Clip.from_config({"embed_dim": 12, "text_cfg": TEXT, "vision_cfg": VIT}).requires_grad_(False).eval()
    pixels = torch.randn(3, 3, 64, 64, requires_grad=True)
    tokens = clip.tokenize(SENTENCES)

    def encode():
        with autocast(torch.device("cpu"), precision), profile(record_shapes=True) as profiler:
            features = clip.encode_image(pixels).float(), clip.encode_text(tokens).float()
            (slope,) = torch.autograd.grad(features[0].square().sum(), pixels)
        shapes = [event.input_shapes for event in profiler.events() if event.name == "aten::bmm"]
        return (*features, slope), [pair for pair in shapes if 3 * 16 in pair[1]]

    before, repeated = encode()
    assert len(repeated) > 2
    clip.put_positions_first()
    after, repeated = encode()
    assert repeated == []
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-6)
