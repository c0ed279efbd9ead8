"""The dense CRF for CUDA, on a processor, against that for a processor; on CUDA itself: tests/pipeline/test_gpu.py."""

import numpy as np
import pytest
import torch

from ris_pipeline.refine import crf, mean_field


def draw(hw=(48, 61), n_problems=crf.PROBLEMS_AT_ONCE + 1):
    """Three colours with noise, and maps of blobs."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (3, 4, 3)), np.ones((20, 20, 1))).astype(np.int64)[: hw[0], : hw[1]]
    image = (image + rng.integers(-9, 9, image.shape)).clip(0, 255).astype(np.uint8)
    labels = (np.kron(rng.random((n_problems, 6, 8)), np.ones((1, 8, 8)))[:, : hw[0], : hw[1]] > 0.6).astype(np.uint8)
    return image, labels


@pytest.mark.parametrize("settings", [crf.IRNET, crf.CLIP_ES])
def test_the_odds_are_the_processors(settings):
    image, labels = draw()
    unary = crf.odds_of_labels(labels)
    expected = crf.DenseCrf(image, settings).log_odds(unary)
    found = mean_field.log_odds(torch.from_numpy(image), torch.from_numpy(unary), settings).numpy()
    assert found.shape == expected.shape
    probability, expected_probability = (1 / (1 + np.exp(-odds)) for odds in (found, expected))
    np.testing.assert_allclose(probability, expected_probability, atol=1e-4)
    assert 0.05 < (expected > 0).mean() < 0.95


def test_the_labels_are_the_processors():
    image, labels = draw(n_problems=3)
    found = mean_field.refine_labels(image, labels, crf.CLIP_ES, torch.device("cpu"))
    np.testing.assert_array_equal(found, crf.refine_labels(image, labels, crf.CLIP_ES))
    assert (found != labels).any()


def test_the_device_has_its_own():
    assert mean_field.refine_on(torch.device("cpu")) is crf.refine_labels
    on_cuda = mean_field.refine_on(torch.device("cuda"))
    assert on_cuda.func is mean_field.refine_labels
    assert on_cuda.keywords == {"device": torch.device("cuda")}


@pytest.mark.parametrize("d", [2, 5])
def test_a_kernel_is_the_processors(d):
    rng = np.random.default_rng(d)
    features = rng.normal(0, 2, (d, 300)).astype(np.float32)
    values = rng.random((300, 4), np.float32)
    expected = crf.NormalizedKernel(features, 3.0).filter(values)
    found = mean_field.Kernel(torch.from_numpy(features), 3.0).filter(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
