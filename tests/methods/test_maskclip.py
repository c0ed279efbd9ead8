"""MaskCLIP against its formulas in numpy, with a ResNet and a ViT of random values."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from ris_pipeline.methods import maskclip
from ris_pipeline.methods.configs import MaskClipConfig
from ris_pipeline.networks.dense import dense_features

CPU = torch.device("cpu")
SENTENCES = ["red star", "left circle", "the ring"]


@pytest.fixture(params=["resnet", "vit"])
def folder(request, tiny_clip, tiny_vit):
    return str(tiny_clip if request.param == "resnet" else tiny_vit)


def unit(values, axis):
    return values / np.linalg.norm(values, axis=axis, keepdims=True)


def ask(folder, pixels, ref_ids, **settings):
    """The responder's grids, and what numpy needs: cosines (C, hw) of sentences and background, keys (K, hw), scale."""
    responder = maskclip.load(MaskClipConfig(clip=folder, input_size=64, background="sky, sea", **settings), CPU)
    (image,) = responder.encode_images(pixels)
    texts = responder.encode_texts(SENTENCES)
    features, keys = (
        part[0].flatten(1).numpy() for part in dense_features(responder.clip, responder.clip.renormalise(pixels))
    )
    cosines = np.concatenate([texts, responder.background]) @ unit(features, 0)
    return responder.respond(image, texts, ref_ids).flatten(1).numpy(), cosines, unit(keys, 0), responder.scale


@pytest.fixture
def pixels():
    torch.manual_seed(1)
    return torch.randn(1, 3, 64, 64)


def test_a_sentence_competes_with_those_about_other_objects_and_with_the_background(folder, pixels):
    grids, cosines, _, scale = ask(folder, pixels, [1, 1, 2])
    for own, classes in enumerate(([0, 2, 3, 4], [1, 2, 3, 4], [2, 0, 1, 3, 4])):
        np.testing.assert_allclose(grids[own], softmax(scale * cosines[classes], axis=0)[0], rtol=1e-4)
    alone, *_ = ask(folder, pixels, None)
    np.testing.assert_allclose(alone[2], softmax(scale * cosines[[2, 3, 4]], axis=0)[0], rtol=1e-4)


def test_denoising_drops_what_is_nowhere_probable_but_never_the_sentence(folder, pixels):
    _, cosines, _, scale = ask(folder, pixels, None)
    for own in range(3):
        probs = softmax(scale * cosines[[own, 3, 4]], axis=0)
        limit = np.sort(probs.max(axis=1))[1] + 1e-4  # two of the three stay below
        grids, *_ = ask(folder, pixels, None, denoising=float(limit))
        kept = [0] + [k for k in (1, 2) if probs[k].max() >= limit]
        assert len(kept) < 3
        np.testing.assert_allclose(grids[own], softmax(scale * cosines[[own, 3, 4]][kept], axis=0)[0], rtol=1e-4)


def test_smoothing_averages_over_places_with_like_keys(folder, pixels):
    _, cosines, keys, scale = ask(folder, pixels, None)
    grids, *_ = ask(folder, pixels, None, smoothing=0.5)
    probs = softmax(scale * cosines[[0, 3, 4]], axis=0)
    weights = np.maximum(keys.T @ keys, 0)
    smoothed = (weights / weights.sum(axis=1, keepdims=True)) @ probs[0]
    np.testing.assert_allclose(grids[0], np.where(probs.max(axis=0) < 0.5, smoothed, probs[0]), rtol=1e-3)


def test_smoothing_by_eye():
    """Places 0 and 2 have the same key, place 1 one at a right angle; place 2 is sure of itself."""
    keys = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    probs = torch.tensor([[0.6, 0.3, 0.9], [0.4, 0.7, 0.1]])
    expected = torch.tensor([[0.75, 0.3, 0.9], [0.25, 0.7, 0.1]])
    torch.testing.assert_close(maskclip.smooth(probs, keys, 0.8), expected)


def test_the_mask_is_above_half_of_the_maximum(tiny_clip):
    rule = maskclip.load(MaskClipConfig(clip=str(tiny_clip), input_size=64), CPU).rule
    assert (rule.normalise, rule.activation, rule.threshold) == ("max", "none", 0.5)
