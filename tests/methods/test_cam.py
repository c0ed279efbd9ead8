"""Grad-CAM and class-aware affinity against the formulas, in numpy and on grids one can check by eye."""

import numpy as np
import pytest
import torch

from ris_pipeline.methods import cam
from ris_pipeline.networks.dense import OpenedImage


@pytest.fixture
def opened():
    """2×3 places of two channels; the feature is the mean of the places, so that its gradient is 1/6 everywhere."""
    places = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    activations = places[None].requires_grad_()
    return OpenedImage((2, 3), activations, activations.mean(dim=1), torch.full((6, 6), 1 / 6))


def test_a_cam_by_central_differences(opened):
    """∂p/∂A by numpy, one value moved at a time; the rest of the formula by hand."""
    texts = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [-1.0, 0.5]]), dim=-1)
    A, t, scale = opened.activations.detach()[0].double().numpy(), texts.double().numpy(), 2.0

    def prob(places):
        f = places.mean(axis=0)
        e = np.exp(scale * t @ (f / np.linalg.norm(f)))
        return e[0] / e.sum()

    gradient = np.zeros_like(A)
    for index in np.ndindex(A.shape):
        step = np.zeros_like(A)
        step[index] = 1e-5
        gradient[index] = (prob(A + step) - prob(A - step)) / 2e-5
    raw = np.maximum(A @ gradient.mean(axis=0), 0)
    raw -= raw.min()
    expected = (raw / raw.max()).reshape(2, 3)
    found = cam.compute_cams(opened, texts, [[0, 1, 2]], scale)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-4)
    assert found[0].argmax() == 0  # the place that looks most like the first text


def test_maps_of_two_sentences_share_the_graph(opened):
    texts = torch.eye(2)
    first, second = cam.compute_cams(opened, texts, [[0, 1], [1, 0]], 2.0)
    assert first.argmax() == 0
    assert second.argmax() == 2


def test_one_text_alone_is_refused(opened):
    with pytest.raises(ValueError, match="background"):
        cam.compute_cams(opened, torch.eye(2), [[0]], 2.0)


def test_normalise():
    assert cam.normalise(torch.tensor([2.0, 4.0, 3.0])).tolist() == pytest.approx([0, 1, 0.5])
    assert cam.normalise(torch.zeros(3)).tolist() == [0, 0, 0]


def test_transition_by_numpy():
    W = np.random.default_rng(0).random((5, 5))
    S = W.copy()
    for _ in range(3):
        S /= S.sum(axis=0, keepdims=True)
        S /= S.sum(axis=1, keepdims=True)
    S = (S + S.T) / 2
    np.testing.assert_allclose(cam.compute_transition(torch.from_numpy(W)).numpy(), S @ S, rtol=1e-6)


def test_boxes_of_two_regions():
    grid = (
        np.array(
            [[9, 0, 0, 0, 0], [0, 9, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 8], [0, 0, 0, 8, 8], [5, 0, 0, 0, 0]],
            np.float32,
        )
        / 9
    )
    expected = np.zeros((6, 5), bool)
    expected[:2, :2] = expected[3:5, 3:] = True  # diagonal neighbours are one region; 5/9 is below 0.7
    np.testing.assert_array_equal(cam.find_boxes(grid, 0.7), expected)


def test_refinement_keeps_to_the_box():
    """T moves everything from place 3 to place 0; place 3 lies outside the box, so nothing comes from there."""
    grid = torch.tensor([[1.0, 0.9], [0.0, 0.5]])
    transition = torch.eye(4)
    transition[0, 3] = 10.0
    refined = cam.refine_cam(grid, transition, 0.7)
    assert refined.flatten().tolist() == pytest.approx([1, 0.9, 0, 0], abs=1e-6)
