"""CLIP: levels, pooling, words, tokens, activation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.weights.clip_weights import load_clip
from tiny import build_random

START, END = 49406, 49407
TINY: dict[str, Any] = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
}
TINY_VIT = TINY | {"vision_cfg": {"image_size": 32, "layers": 1, "width": 8, "head_width": 4, "patch_size": 16}}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return build_random(TINY)


def activation_of_one(clip: Clip) -> float:
    return float(clip.model.transformer.resblocks[0].mlp.gelu(torch.tensor(1.0)))


QUICK_GELU_OF_ONE = 1 / (1 + math.exp(-1.702))
GELU_OF_ONE = (1 + math.erf(1 / math.sqrt(2))) / 2


# levels


@pytest.mark.parametrize(
    ("hw", "grids"),
    [
        ((320, 320), [(80, 80), (40, 40), (20, 20), (10, 10)]),
        ((256, 256), [(64, 64), (32, 32), (16, 16), (8, 8)]),
        ((75, 101), [(19, 25), (9, 12), (4, 6), (2, 3)]),
    ],
)
@torch.no_grad()
def test_levels_have_strides_4_to_32(clip: Clip, hw: tuple[int, int], grids: list[tuple[int, int]]) -> None:
    levels = clip.levels(torch.rand(2, 3, *hw))
    assert [tuple(level.shape[2:]) for level in levels] == grids
    assert tuple(level.shape[1] for level in levels) == clip.level_channels == (32, 64, 128, 256)


def reach(last_stride: int, hw: int = 256) -> int:
    """Over how many columns of pixels the middle cell of c4 looks: those its gradient comes from."""
    config = TINY | {"vision_cfg": TINY["vision_cfg"] | {"layers": [1, 1, 1, 2]}}
    clip = Clip.from_config(config, last_stride=last_stride).double().eval()
    with torch.no_grad():
        for name, value in clip.model.visual.named_parameters():
            value.fill_(1e-2 if "conv" in name or "downsample" in name else 1.0)
    pixels = torch.rand(1, 3, hw, hw, dtype=torch.float64, requires_grad=True)
    c4 = clip.levels(pixels)[3]
    assert c4.shape[-2:] == (hw // last_stride, hw // last_stride)
    c4[0, :, c4.shape[2] // 2, c4.shape[3] // 2].sum().backward()
    columns = pixels.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    return int(columns.max() - columns.min()) + 1


def test_without_its_last_stride_the_resnet_sees_as_far_as_with_it() -> None:
    assert reach(16) >= reach(32)


@torch.no_grad()
def test_c4_is_what_the_attention_pooling_reads(clip: Clip) -> None:
    pixels, seen = torch.rand(2, 3, 64, 64), []
    hook = clip.model.visual.attnpool.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    c4 = clip.levels(pixels)[3]
    assert not seen, "levels must not pool"
    clip.model(pixels)
    hook.remove()
    torch.testing.assert_close(c4, seen[0])


def test_rn50_is_the_papers_encoder() -> None:
    with torch.device("meta"):  # shapes alone
        clip = load_clip("RN50-quickgelu")
        levels = clip.levels(torch.empty(1, 3, 320, 320))
    assert sum(p.numel() for p in clip.parameters()) == 102_007_137
    assert clip.level_channels == (256, 512, 1024, 2048)
    assert (clip.word_width, clip.embed_dim, clip.image_size, clip.n_tokens) == (512, 1024, 224, 20)
    grids = [tuple(level.shape) for level in levels]
    assert grids == [(1, 256, 80, 80), (1, 512, 40, 40), (1, 1024, 20, 20), (1, 2048, 10, 10)]


@torch.no_grad()
def test_a_vit_pools_and_its_levels_come_of_its_grid() -> None:
    clip = build_random(TINY_VIT)
    assert clip.encode_image(torch.rand(2, 3, 32, 32)).shape == (2, 12)
    pixels = torch.rand(1, 3, 32, 32)
    levels = clip.levels(pixels)
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 8, 8), (8, 4, 4), (8, 2, 2), (8, 2, 2)]
    tokens = clip.model.visual.forward_intermediates(pixels, indices=[0], normalize_intermediates=True)
    torch.testing.assert_close(levels[3], tokens["image_intermediates"][0])


@torch.no_grad()
def test_pooling_equals_open_clips_at_its_size_and_reads_others(clip: Clip) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(clip.encode_image(pixels), clip.model.encode_image(pixels))
    assert clip.encode_image(torch.rand(1, 3, 320, 256)).shape == (1, clip.embed_dim)


# words


@torch.no_grad()
def test_sentence_equals_open_clip_at_its_full_context(clip: Clip) -> None:
    tokens = clip.tokenize(["a photo of a cat", "man", "the second zebra from the left, behind the fence"])
    full = torch.zeros(3, 32, dtype=torch.int64)
    full[:, :20] = tokens
    words, sentence = clip.words(tokens)
    assert words.shape == (3, 20, 8)
    torch.testing.assert_close(sentence, clip.model.encode_text(full))
    torch.testing.assert_close(clip.encode_text(tokens[:, :14]), sentence)  # padding changes nothing
    torch.testing.assert_close(words[1, 2] @ clip.model.text_projection, sentence[1])  # start, "man", end


def test_words_see_no_later_word(clip: Clip) -> None:
    words, _ = clip.words(clip.tokenize(["red car left", "red car right"]))
    torch.testing.assert_close(words[0, :3], words[1, :3])
    assert not torch.allclose(words[0, 3], words[1, 3])


def test_tokens_are_clips(clip: Clip) -> None:
    tokens = clip.tokenize(["a photo of a cat", ""])
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist() == [START, 320, 1125, 539, 320, 2368, END] + [0] * 13
    assert tokens[1].tolist() == [START, END] + [0] * 18
    assert clip.tokenize([]).shape == (0, 20)


def test_tokens_that_are_kept_belong_to_one_length(clip):
    sentence = " ".join(["red"] * 40)
    shorter = Clip.from_config(TINY, n_tokens=8)
    assert [len(other.tokenize([sentence])[0]) for other in (clip, shorter, clip)] == [20, 8, 20]


@pytest.mark.parametrize(
    "sentence",
    ["左边的狗", "الكلب", "cafe\u0301", "🐶 dog", "a <|endoftext|> dog", "<|startoftext|>", "a\0b", "a\nb", "!!!"],
)
def test_any_text_has_one_start_and_one_end(clip: Clip, sentence: str) -> None:
    tokens = clip.tokenize([sentence])[0].tolist()
    assert [tokens.count(START), tokens.count(END)] == [1, 1]
    assert tokens[0] == START
    assert not any(tokens[tokens.index(END) + 1 :])
    assert torch.isfinite(clip.encode_text(clip.tokenize([sentence]))).all()


def test_all_positions_of_the_table_can_be_used() -> None:
    clip = Clip.from_config(TINY, n_tokens=None)
    assert clip.n_tokens == 32
    assert clip.encode_text(clip.tokenize([" ".join(["a"] * 40)])).shape == (1, 12)


def test_pixels_are_brought_to_the_statistics_of_the_model() -> None:
    red = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    clip = Clip.from_config(TINY, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert clip.renormalise(red.view(1, 3, 1, 1)).flatten().tolist() == pytest.approx([1, -1, -1], abs=1e-6)
    openai = Clip.from_config(TINY).renormalise(red.view(1, 3, 1, 1)).flatten().tolist()
    # (1 − 0.48145466) / 0.26862954, −0.4578275 / 0.26130258, −0.40821073 / 0.27577711
    assert openai == pytest.approx([1.9303362, -1.7520972, -1.4802198], abs=1e-5)


def test_a_long_sentence_keeps_its_end_token(clip: Clip) -> None:
    tokens = clip.tokenize([" ".join(["a"] * 30)])
    assert tokens[0].tolist() == [START] + [320] * 18 + [END]


def test_gradients_reach_both_encoders() -> None:
    clip = build_random(TINY)
    sentence = clip.encode_text(clip.tokenize(["red"]))
    (sentence.sum() + clip.levels(torch.rand(1, 3, 64, 64))[3].sum()).backward()
    for parameter in (clip.model.token_embedding.weight, clip.model.visual.conv1.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_quick_gelu_is_another_function() -> None:
    quick = Clip.from_config(TINY)
    plain = Clip.from_config(TINY | {"quick_gelu": False})
    plain.load_state_dict(quick.state_dict())
    assert activation_of_one(quick) == pytest.approx(QUICK_GELU_OF_ONE)
    assert activation_of_one(plain) == pytest.approx(GELU_OF_ONE)
    tokens = quick.tokenize(["red car"])
    assert not torch.allclose(quick.encode_text(tokens), plain.encode_text(tokens), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text_cfg": TINY["text_cfg"] | {"context_length": 16}}, "n_tokens must be 2 to 16"),
        ({"text_cfg": TINY["text_cfg"] | {"vocab_size": 100}}, "100 tokens"),
        ({"text_cfg": TINY["text_cfg"] | {"proj_type": "none"}}, "none of open_clip's own"),
        ({"text_cfg": TINY["text_cfg"] | {"hf_model_name": "roberta-base"}}, "Hugging Face"),
        ({"depth": 3}, "depth"),
    ],
)
def test_unsuitable_configurations_are_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RisError, match=reason):
        Clip.from_config(TINY | change)
