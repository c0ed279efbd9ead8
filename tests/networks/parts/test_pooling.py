import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d

from ris_pipeline.networks.parts.pooling import attention_pool, resize_positions


def pooling_of(side):
    torch.manual_seed(0)
    pooling = AttentionPool2d(side, embed_dim=8, num_heads=2, output_dim=5).eval()
    with torch.no_grad():
        for parameter in pooling.parameters():  # fresh biases are small, and would hide a mix-up
            parameter.normal_()
    return pooling


@pytest.mark.parametrize("side", [1, 3, 4])
def test_equals_open_clip_at_its_own_size(side):
    pooling = pooling_of(side)
    c4 = torch.randn(3, 8, side, side)
    with torch.no_grad():
        torch.testing.assert_close(attention_pool(pooling, c4), pooling(c4), atol=1e-5, rtol=1e-5)


def test_other_sizes_equal_open_clip_with_the_resized_table():
    pooling, wider = pooling_of(2), pooling_of(3)
    wider.load_state_dict(
        pooling.state_dict() | {"positional_embedding": resize_positions(pooling.positional_embedding, (3, 3))}
    )
    c4 = torch.randn(2, 8, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(attention_pool(pooling, c4), wider(c4), atol=1e-5, rtol=1e-5)
        assert attention_pool(pooling, torch.randn(2, 8, 3, 5)).shape == (2, 5)


def test_gradients_equal_open_clips():
    pooling = pooling_of(3)
    ours, theirs = (torch.linspace(-1, 1, 144).reshape(2, 8, 3, 3).requires_grad_() for _ in range(2))
    attention_pool(pooling, ours).square().sum().backward()
    ours_of_table = pooling.positional_embedding.grad.clone()
    pooling.zero_grad()
    pooling(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours_of_table, pooling.positional_embedding.grad, atol=1e-4, rtol=1e-4)


def test_positions_are_resized_by_hand():
    """Row 0 is the mean token's and stays; the grid 0 4 / 8 12 of one channel becomes 2×4: 0 1 3 4 / 8 9 11 12."""
    table = torch.tensor([[7.0], [0.0], [4.0], [8.0], [12.0]])
    resized = resize_positions(table, (2, 4))
    assert resized[:, 0].tolist() == [7, 0, 1, 3, 4, 8, 9, 11, 12]
    assert resize_positions(table, (2, 2)) is table


def test_channels_keep_apart():
    table = torch.stack([torch.arange(5.0), torch.zeros(5)], dim=1)
    assert not resize_positions(table, (3, 5))[:, 1].any()
