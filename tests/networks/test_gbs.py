"""GbS's network: its size, its parts by the formulas, and the grounding of words by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ris_pipeline.networks.gbs import Bottleneck, GbS, compare_places, ground_words
from ris_pipeline.networks.parts.stages import ClipStages
from ris_pipeline.networks.vgg import build_vgg
from ris_pipeline.networks.words import WordEncoder
from tiny import TINY, build_random


class Fixed(WordEncoder):
    """Sentences of two words that are their position and length."""

    n_tokens = 4

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.dropout = nn.Dropout()
        self.anything = nn.Linear(1, 1)

    def forward(self, sentences):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(len(sentences), 3, self.width, generator=generator)


def build(width=2, text_width=6, n_levels=5):
    torch.manual_seed(0)
    return GbS(Fixed(text_width), build_vgg("vgg16_bn", width, None), 8 * width, n_levels)


def test_the_papers_size():
    """TRIS Table 2: 48.41 M. The released network, BERT not counted, of which 6.033 M are never run."""
    with torch.device("meta"):
        network = build(64, 768)
    counted = {name: p.numel() for name, p in network.named_parameters() if not name.startswith("text.")}
    assert sum(counted.values()) == 48_408_640
    assert sum(n for name, n in counted.items() if name.startswith("unused.")) == 6_033_408


def test_shapes_at_a_size_of_no_whole_cells():
    network = build().eval()
    levels = network.levels(torch.randn(2, 3, 100, 100))
    assert [level.shape[-1] for level in levels] == [50, 25, 12, 6, 3]
    sentences = network.text(["a", "b"])[:, 0]
    assert network.separate(levels, sentences).shape == (2, 6, 6)
    assert network.separate(levels, None).shape == (2, 6, 6)
    places = network.project_levels(levels)
    assert places.shape == (2, 5, 36, 6)
    torch.testing.assert_close(places.norm(dim=-1), torch.ones(2, 5, 36))


def test_a_resnet_stands_in_for_vgg():
    """The tiny CLIP's five stages, its last two at strides 16 and 32: the grid is the last but one's, rounded up."""
    network = GbS(Fixed(6), ClipStages(build_random(TINY)), 4, 2).eval()
    pixels = torch.randn(2, 3, 100, 100)
    levels = network.levels(pixels)
    assert [level.shape[1] for level in levels] == list(network.features.stage_channels)
    assert network.grid_side(100) == levels[-2].shape[-1] == 7
    sentence = network.text(["a", "b"])[:, 0]
    assert network.separate(levels, sentence).shape == network.separate(levels, None).shape == (2, 7, 7)
    places = network.project_levels(levels)
    assert places.shape == (2, 2, 49, 6)
    skip, deep = levels[-2:]
    gated = [
        x * torch.exp(-(x - linear(sentence)[..., None, None]).abs())
        for x, linear in zip((deep, skip), network.conditions, strict=True)
    ]
    up = F.interpolate(network.decoder(gated[0]), (7, 7), mode="bilinear", align_corners=False)
    expected = F.conv2d(torch.cat([gated[1], up], dim=1), network.head.weight, padding=1)[:, 0]
    torch.testing.assert_close(network.separate(levels, sentence), expected)


def test_a_bottleneck_is_the_identity_of_its_convolution_plus_the_rest():
    block = Bottleneck(3, 4).eval()
    x = torch.randn(1, 3, 5, 5)
    nn.init.zeros_(block.inner[-1].weight)  # the last BatchNorm: nothing is added
    torch.testing.assert_close(block(x), F.conv2d(x, block.enter.weight, padding=1).relu())
    assert all(layer.bias is None for layer in block.modules() if isinstance(layer, nn.Conv2d))


def test_separation_by_the_formulas():
    network = build().eval()
    levels = network.levels(torch.randn(1, 3, 64, 64))
    sentence = torch.randn(1, 6)
    skip, deep = levels[3], levels[4]
    gated = []
    for x, linear in ((deep, network.conditions[0]), (skip, network.conditions[1])):
        c = linear(sentence)[0]
        gated.append(torch.stack([x[0, k] * torch.exp(-(x[0, k] - c[k]).abs()) for k in range(len(c))])[None])
    decoded = network.decoder(gated[0])
    assert decoded.shape[-2:] == (2, 2)
    up = F.interpolate(decoded, (4, 4), mode="bilinear", align_corners=False)
    expected = F.conv2d(torch.cat([gated[1], up], dim=1), network.head.weight, padding=1)[0]
    torch.testing.assert_close(network.separate(levels, sentence), expected)
    free = network.separate(levels, None)
    skip_scaled = [*levels[:3], 3 * skip, 5 * deep]
    torch.testing.assert_close(network.separate(skip_scaled, None), free)  # of length 1 over channels


def test_the_text_encoder_is_frozen_and_never_in_training_mode():
    network = build().train()
    assert not any(parameter.requires_grad for parameter in network.text.parameters())
    assert not network.text.dropout.training
    assert network.features.training


def test_similarity_by_hand():
    """Two places along the axes, a word between them at 60° and 30°, one against both, and padding."""
    places = torch.eye(2).view(1, 1, 2, 2)
    words = torch.tensor([[[0.5, math.sqrt(0.75)], [-1.0, -1.0], [0.0, 0.0]]])
    similarity, heat = compare_places(places, 7 * words)
    assert heat[0, 0, 0, 0].tolist() == pytest.approx([0.5, math.sqrt(0.75)])
    assert similarity[0, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.0])  # attended: (½, √¾), the word itself
    assert heat[0, 0, 0, 1:].abs().sum() == 0


def test_grounding_takes_each_words_best_level():
    """The first word finds its place on level 1 alone, the second on level 0 alone; weights are their similarities."""
    places = torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]]])  # (1, 2, 2, 3)
    words = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    # Word 0: heat (0.6, 0) on level 1, attended (0.6, 0.8, 0), similarity 0.6. Word 1: heat (1, 0) on level 0, 1.
    expected = [(0.6 * 0.6 + 1.0 * 1.0) / 1.6, 0.0]
    assert ground_words(places, words)[0].tolist() == pytest.approx(expected, abs=1e-5)
