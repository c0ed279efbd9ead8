"""Dense features and opened images of a tiny CLIP-ViT and a tiny CLIP-ResNet."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.dense import dense_features, open_image
from ris_pipeline.networks.parts.pooling import attention_pool

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}


def build(vision):
    torch.manual_seed(0)
    return Clip(open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT, quick_gelu=True)).eval()


@pytest.fixture(scope="module", params=[VIT, RESNET], ids=["vit", "resnet"])
def clip(request):
    return build(request.param)


def test_a_resnets_features_are_its_pooling_without_attention():
    """A pooling that sees one place only, without its positions, gives that place's feature."""
    clip = build(RESNET)
    pooling = clip.model.visual.attnpool
    pixels = torch.randn(1, 3, 64, 96)
    features, keys = dense_features(clip, pixels)
    c4 = clip.levels(pixels)[3]
    assert features.shape == (1, 12, 2, 3)
    assert keys.shape == c4.shape
    pooling.positional_embedding.data.zero_()
    for y, x in ((0, 0), (1, 2)):
        alone = attention_pool(pooling, c4[:, :, y : y + 1, x : x + 1])
        torch.testing.assert_close(features[:, :, y, x], alone, rtol=1e-4, atol=1e-5)


def test_opened_vit_feature_is_the_mean_of_the_places():
    clip = build(VIT)
    pixels = torch.randn(1, 3, 32, 32)
    visual = clip.model.visual
    x = visual._embeds(pixels)
    for block in visual.transformer.resblocks:
        x = block(x)
    expected = (visual.ln_post(x) @ visual.proj)[:, 1:].mean(dim=1)
    torch.testing.assert_close(open_image(clip, pixels).feature, expected)


def test_opened_resnet_feature_is_the_pooled_one():
    clip = build(RESNET)
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(open_image(clip, pixels).feature, clip.model.encode_image(pixels))


def test_affinity_and_gradient(clip):
    side = clip.image_size
    opened = open_image(clip, torch.randn(1, 3, side, side * 2))
    h, w = opened.grid_hw
    assert w == 2 * h
    assert opened.affinity.shape == (h * w, h * w)
    sums = opened.affinity.sum(dim=1)
    assert (sums <= 1 + 1e-5).all()
    assert (sums > 0).all()
    target = F.normalize(torch.randn(12), dim=-1)
    (gradient,) = torch.autograd.grad((opened.feature @ target).sum(), opened.activations)
    assert gradient.abs().sum() > 0


def test_no_gradient_is_needed_outside(clip):
    with torch.no_grad():
        opened = open_image(clip, torch.randn(1, 3, clip.image_size, clip.image_size))
    assert opened.feature.requires_grad
