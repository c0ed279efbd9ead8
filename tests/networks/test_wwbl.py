"""WWbL's network: its size, and its decoder by the formulas."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.vgg import build_vgg
from ris_pipeline.networks.wwbl import WWbL
from tiny import TINY, build_random


@pytest.fixture
def network():
    torch.manual_seed(0)
    return WWbL(build_random(TINY), build_vgg("vgg16", 2, None)).eval()


def test_the_papers_size():
    """TRIS Table 2: 81.30 M, of which 63.690 M are CLIP RN50's text encoder and 0.525 M the layer 1024 → 512."""
    with torch.device("meta"):
        clip = Clip.from_config(dict(open_clip.get_model_config("RN50-quickgelu")))
        network = WWbL(clip, build_vgg("vgg16", 64, None))
    assert sum(parameter.numel() for parameter in network.parameters()) == 81_298_255
    assert sum(parameter.numel() for parameter in network.clip.parameters()) == 63_690_240
    assert sum(parameter.numel() for parameter in network.project.parameters()) == 524_800
    assert sum(parameter.numel() for parameter in network.features.parameters()) == 7_635_264


def test_decoding_by_the_formulas(network):
    places = network.encode_image(torch.randn(2, 3, 64, 64))
    sentences = network.encode_text(torch.randn(2, 6))
    assert places.shape == (2, 16, 8, 8)
    torch.testing.assert_close(sentences.norm(dim=-1), torch.ones(2))
    places[0, :, 3, 4] = 0  # a place without any feature
    cosine = torch.stack(
        [F.cosine_similarity(places[i].flatten(1).T, sentences[i][None], dim=1).view(8, 8) for i in range(2)]
    )
    x = places * cosine[:, None]
    for block in (network.up1, network.up2):
        x = block(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
    logits = network.decode(places, sentences)
    assert logits.shape == (2, 32, 32)
    torch.testing.assert_close(logits, x[:, 0])


def test_it_reads_sentences_without_an_image_encoder(network):
    assert "visual" not in dict(network.clip.model.named_children())
    whole = build_random(TINY)
    tokens = whole.tokenize(["a red thing"])
    assert torch.equal(network.clip.encode_text(tokens), whole.encode_text(tokens))
    assert not any(parameter.requires_grad for parameter in network.clip.parameters())
    assert not network.train().clip.training
