"""The opened ViT against open_clip's own forward pass and torch's attention."""

import open_clip
import pytest
import torch

from ris_pipeline.errors import RisError
from ris_pipeline.networks import vit
from ris_pipeline.networks.parts.pooling import resize_positions


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=12,
        vision_cfg={"image_size": 32, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=True,
    )
    return model.eval()


def test_the_class_token_is_open_clips_feature(clip):
    pixels = torch.randn(2, 3, 32, 32)
    x, attentions = vit.run_blocks(clip.visual.transformer.resblocks, vit.embed(clip.visual, pixels, "bilinear"))
    torch.testing.assert_close(vit.project(clip.visual, x)[:, 0], clip.encode_image(pixels))
    assert [tuple(attention.shape) for attention in attentions] == [(2, 17, 17)] * 3


def test_attention_is_torchs(clip):
    block, x = clip.visual.transformer.resblocks[0], torch.randn(2, 17, 16)
    normalised = block.ln_1(x)
    _, expected = block.attn(normalised, normalised, normalised, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(vit.attend(block, x)[1], expected)


def test_values_are_attention_to_oneself(clip):
    """With attention the identity, out_proj sees each token's own value; tokens do not see one another."""
    block, x = clip.visual.transformer.resblocks[0], torch.randn(1, 5, 16)
    alone = torch.cat([block(x[:, i : i + 1]) for i in range(5)], dim=1)  # one token: attention is 1
    torch.testing.assert_close(vit.follow_values(block, x), alone)


def test_keys_stand_side_by_side(clip):
    block, x = clip.visual.transformer.resblocks[0], torch.randn(1, 5, 16)
    weight, bias = block.attn.in_proj_weight[16:32], block.attn.in_proj_bias[16:32]
    torch.testing.assert_close(vit.keys_of(block, x), block.ln_1(x) @ weight.T + bias)


def test_positions_of_another_grid():
    """A table that rises by one a column stays so in the middle of a grid twice as wide; rows are equal."""
    table = torch.tensor([[9.0], [0.0], [1.0], [0.0], [1.0]])  # class token, then 2×2
    wide = resize_positions(table, (2, 4), (2, 2))
    assert wide.flatten().tolist() == [9.0, 0.0, 0.25, 0.75, 1.0, 0.0, 0.25, 0.75, 1.0]
    assert resize_positions(table, (2, 2), (2, 2)) is table


def test_an_image_of_another_size(clip):
    x = vit.embed(clip.visual, torch.randn(1, 3, 16, 40), "bicubic")
    assert x.shape == (1, 1 + 2 * 5, 16)
    with pytest.raises(RisError, match="30×32"):
        vit.embed(clip.visual, torch.randn(1, 3, 30, 32), "bicubic")


def test_other_towers_are_refused(clip):
    vit.check_vit(clip.visual)
    with pytest.raises(RisError, match="no ViT"):
        vit.check_vit(torch.nn.Identity())
