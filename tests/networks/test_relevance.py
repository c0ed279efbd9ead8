"""Relevance against central differences of the attention, and on a CLIP that looks at one place."""

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from ris_pipeline.networks import vit
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.pooling import attend_pool, attention_pool
from ris_pipeline.networks.relevance import compute_relevance

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}


def build(vision):
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT, quick_gelu=True)
    return Clip(model).eval().double()


def relevance_by_differences(attention, feature_of, text):
    """mean_heads ReLU(A · ∂cos/∂A) in numpy, A of shape (heads, N) moved by one value at a time."""

    def cosine(A):
        f = feature_of(A)
        return float(f @ text / (np.linalg.norm(f) * np.linalg.norm(text)))

    gradient = np.zeros_like(attention)
    for index in np.ndindex(attention.shape):
        step = np.zeros_like(attention)
        step[index] = 1e-6
        gradient[index] = (cosine(attention + step) - cosine(attention - step)) / 2e-6
    return np.maximum(attention * gradient, 0).mean(axis=0)[1:]


def test_of_a_vit_by_differences():
    clip = build(VIT)
    visual = clip.model.visual
    pixels, text = torch.randn(1, 3, 32, 32).double(), torch.randn(1, 12).double()
    with torch.no_grad():
        x, _ = vit.run_blocks(visual.transformer.resblocks[:-1], vit.embed(visual, pixels, "bilinear"))
        block = visual.transformer.resblocks[-1]
        A = vit.attend(block, x)[1][0, :, 0].numpy()  # (heads, N), the class token's rows
        values = F.linear(block.ln_1(x), block.attn.in_proj_weight[32:], block.attn.in_proj_bias[32:])[0].numpy()

        def feature_of(attention):
            mixed = np.concatenate([attention[k] @ values[:, 8 * k : 8 * k + 8] for k in range(2)])
            token = x[:, :1] + block.attn.out_proj(torch.from_numpy(mixed))[None, None]
            token = token + block.mlp(block.ln_2(token))
            return vit.project(visual, token)[0, 0].numpy()

        expected = relevance_by_differences(A, feature_of, text[0].numpy()).reshape(2, 2)
    found = compute_relevance(clip, pixels, torch.tensor([0]), text)
    assert found.shape == (1, 2, 2)
    assert expected.max() > 0
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-10)


def test_of_a_resnet_by_differences():
    clip = build(RESNET)
    pooling = clip.model.visual.attnpool
    pixels, text = torch.randn(1, 3, 64, 64).double(), torch.randn(1, 12).double()
    with torch.no_grad():
        c4 = clip.levels(pixels)[3]
        A = attend_pool(pooling, c4)[1][0, :, 0].numpy()
        cells = torch.cat([c4.mean((2, 3))[:, None], c4.flatten(2).transpose(1, 2)], dim=1)
        values = pooling.v_proj(cells + pooling.positional_embedding)[0].numpy()
        width = values.shape[1] // pooling.num_heads

        def feature_of(attention):
            heads = [attention[k] @ values[:, width * k : width * (k + 1)] for k in range(len(attention))]
            return pooling.c_proj(torch.from_numpy(np.concatenate(heads))).numpy()

        expected = relevance_by_differences(A, feature_of, text[0].numpy()).reshape(2, 2)
    found = compute_relevance(clip, pixels, torch.tensor([0]), text)
    assert expected.max() > 0
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_texts_of_one_image_do_not_see_each_other(vision):
    clip = build(vision)
    side = clip.image_size
    pixels, texts = torch.randn(2, 3, side, side).double(), torch.randn(3, 12).double()
    image_of = torch.tensor([1, 0, 1])
    together = compute_relevance(clip, pixels, image_of, texts)
    for k, i in enumerate(image_of.tolist()):
        alone = compute_relevance(clip, pixels[i : i + 1], torch.tensor([0]), texts[k : k + 1])
        torch.testing.assert_close(together[k], alone[0])


def test_attention_behind_a_pooled_feature():
    clip = build(RESNET)
    pooling, c4 = clip.model.visual.attnpool, torch.randn(2, 256, 2, 3).double()
    feature, attention = attend_pool(pooling, c4)
    torch.testing.assert_close(feature, attention_pool(pooling, c4))
    assert attention.shape == (2, pooling.num_heads, 1, 7)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, pooling.num_heads, 1).double())
