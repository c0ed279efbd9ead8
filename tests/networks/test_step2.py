"""Step-2 against the paper's formulas in numpy, and its names and sizes against the released checkpoint's."""

import math

import numpy as np
import open_clip
import pytest
import torch

from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.pixel_attention import PixelAttention, of_sentences
from ris_pipeline.networks.step2 import Step2
from tiny import TINY


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return Clip.from_config(TINY)


@pytest.fixture
def step2(clip):
    torch.manual_seed(1)
    return Step2(clip, clip, widths=(4, 6, 8, 10)).eval()


def reference_attention(module, V, words):
    """ReLU(W_o(ReLU(W_m V)·G)) of V (N, C, h, w) and words (N, T, D), sentence by sentence, in numpy."""
    P = {name: value.numpy() for name, value in module.state_dict().items()}
    N, C, h, w = V.shape

    def conv(x, name):  # x (positions, channels)
        return x @ P[f"{name}.weight"].reshape(C, -1).T + P[f"{name}.bias"]

    def instance_norm(x, name):
        centred = x - x.mean(axis=0)
        normed = centred / np.sqrt((centred**2).mean(axis=0) + 1e-5)
        return normed * P[f"{name}.weight"] + P[f"{name}.bias"]

    out = np.empty_like(V)
    for n in range(N):
        v = V[n].reshape(C, h * w).T
        Q = instance_norm(conv(v, "Wq"), "ins_q")
        scores = Q @ conv(words[n], "Wk").T / math.sqrt(C)
        e = np.exp(scores - scores.max(axis=1, keepdims=True))
        A = e / e.sum(axis=1, keepdims=True)
        G = instance_norm(conv(A @ conv(words[n], "Wv"), "Ww"), "ins_w")
        out[n] = np.maximum(conv(np.maximum(conv(v, "Wm"), 0) * G, "Wo"), 0).T.reshape(C, h, w)
    return out


@pytest.fixture
def attention():
    torch.manual_seed(2)
    module = PixelAttention(4, 3).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def test_attention(attention):
    rng = np.random.default_rng(0)
    V, words = rng.normal(size=(2, 4, 3, 2)), rng.normal(size=(2, 5, 3))
    out = attention(torch.tensor(V), torch.tensor(words)).detach()
    np.testing.assert_allclose(out, reference_attention(attention, V, words), rtol=1e-10, atol=1e-12)


def test_attention_of_many_sentences_on_one_image(attention):
    rng = np.random.default_rng(0)
    V, words = rng.normal(size=(1, 4, 3, 2)), rng.normal(size=(3, 5, 3))
    out = attention(torch.tensor(V), torch.tensor(words)).detach()
    expected = reference_attention(attention, np.repeat(V, 3, axis=0), words)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)


def test_four_maps_in_training_one_in_evaluation(step2, clip):
    pixels, tokens = torch.randn(2, 3, 64, 96), clip.tokenize(["a", "b"])
    assert step2(pixels, tokens).shape == (2, 64, 96)
    heads = step2.segment_heads(step2.encode_image(pixels), step2.encode_text(tokens))
    assert [tuple(head.shape) for head in heads] == [(2, 64, 96)] * 4


def test_one_image_many_sentences(step2, clip):
    levels = step2.encode_image(torch.randn(1, 3, 64, 64))
    words = step2.encode_text(clip.tokenize(["red ball", "the left one", "dog"]))
    together = step2.segment(levels, words)
    for n in range(3):
        torch.testing.assert_close(together[n : n + 1], step2.segment(levels, words[n : n + 1]))


def test_heads_read_the_decoder_after_upsampling(step2, clip):
    seen = {}
    for i in range(1, 5):
        head = step2.get_submodule(f"final_seg{i}")
        head.register_forward_pre_hook(lambda _, args, i=i: seen.update({i: tuple(args[0].shape)}))
    step2.segment_heads(step2.encode_image(torch.randn(2, 3, 64, 64)), step2.encode_text(clip.tokenize(["a", "b"])))
    assert seen == {1: (2, 2, 16, 16), 2: (2, 4, 16, 16), 3: (2, 6, 8, 8), 4: (2, 8, 4, 4)}


def test_words_are_added_to_the_image(step2, clip):
    """With W_o = 0 the attention gives 0 and the sentence makes no difference: it is a residual."""
    pixels = torch.randn(1, 3, 64, 64)
    a, b = clip.tokenize(["red ball"]), clip.tokenize(["dog"])
    assert not torch.allclose(step2(pixels, a), step2(pixels, b))
    with torch.no_grad():
        for i in (2, 3, 4):
            for parameter in step2.get_submodule(f"attention{i}").Wo.parameters():
                parameter.zero_()
    torch.testing.assert_close(step2(pixels, a), step2(pixels, b), rtol=0, atol=0)
    assert step2(pixels, a).abs().sum() > 0


def test_names_are_those_of_the_released_checkpoint(step2):
    new = {name for name in step2.state_dict() if not name.startswith("clip.model.")}
    kinds = ("weight", "bias")
    attention = ("Wk", "Wv", "Wq", "Wm", "Ww", "Wo", "ins_q", "ins_w")
    expected = {f"attention{i}.{part}.{kind}" for i in (2, 3, 4) for part in attention for kind in kinds}
    blocks = [f"{part}{i}" for i in (1, 2, 3, 4) for part in ("reduced_c", "output")]
    blocks += [f"final_seg{i}.0" for i in (1, 2, 3, 4)]
    batch_norm = (*kinds, "running_mean", "running_var", "num_batches_tracked")
    expected |= {f"{block}.bn.{kind}" for block in blocks for kind in batch_norm}
    expected |= {f"{block}.{part}.weight" for block in blocks for part in ("conv", "relu")}
    expected |= {f"final_seg{i}.1.weight" for i in (1, 2, 3, 4)}
    assert new == expected


def test_size_is_that_of_the_released_network():
    with torch.device("meta"):
        clip = Clip.from_config(open_clip.get_model_config("RN50-quickgelu"))
        network = Step2(clip, clip, widths=(64, 128, 256, 512))
    assert sum(p.numel() for p in network.parameters()) == 142_085_869


def test_a_size_that_the_levels_do_not_divide(step2):
    with pytest.raises(RisError, match="64×100"):
        step2.encode_image(torch.zeros(1, 3, 64, 100))


def test_the_gradient_of_shared_images_is_the_same_each_time() -> None:
    values = torch.randn(8, 64, 20, 20).contiguous(memory_format=torch.channels_last).requires_grad_()
    image_of, gradient = torch.randint(8, (16,)), torch.randn(16, 64, 20, 20)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [torch.autograd.grad(of_sentences(values, image_of), values, gradient)[0] for _ in range(10)]
    finally:
        torch.set_num_threads(n_threads)
    assert all(torch.equal(found[0], head) for head in found)
