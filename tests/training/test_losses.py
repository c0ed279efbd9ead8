"""The losses against the paper's formulas in numpy; their gradients against finite differences of those."""

import math

import numpy as np
import pytest
import torch

from by_hand import resize_matrix
from ris_pipeline.training.losses import calibration_loss, classification_loss, overlap_loss, step2_loss


def finite_difference(f, x, step=1e-6):
    gradient = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        above, below = x.copy(), x.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (f(above) - f(below)) / (2 * step)
    return gradient


def reference_classification(S, targets):
    B, N, h, w = S.shape
    total, count = 0.0, 0
    for i in range(B):
        channels = np.concatenate([np.ones((1, h, w)), S[i]])
        M = np.exp(channels) / np.exp(channels).sum(axis=0)
        for j in range(N):
            m = M[j + 1].mean()
            logit = S[i, j].mean() + S[i, j].max() + (1 - m) ** 3 * math.log(0.01 + m)
            p = 1 / (1 + math.exp(-logit))
            total -= targets[i, j] * math.log(p) + (1 - targets[i, j]) * math.log(1 - p)
            count += 1
    return total / count


def test_classification_loss_and_gradient():
    S = np.random.default_rng(0).normal(size=(3, 3, 2, 3))
    logits = torch.tensor(S, requires_grad=True)
    loss = classification_loss(logits, torch.eye(3))
    loss.backward()
    assert loss.item() == pytest.approx(reference_classification(S, np.eye(3)), rel=1e-12)
    expected = finite_difference(lambda x: reference_classification(x, np.eye(3)), S)
    np.testing.assert_allclose(logits.grad, expected, atol=1e-8)


def test_classification_loss_is_torch_multilabel_soft_margin_of_zero_scores():
    """S = 0, two texts: M = 1/(e+2) each, m the same, all logits equal."""
    m = 1 / (math.e + 2)
    logit = (1 - m) ** 3 * math.log(0.01 + m)
    expected = torch.nn.functional.multilabel_soft_margin_loss(torch.full((2, 2), logit), torch.eye(2))
    torch.testing.assert_close(classification_loss(torch.zeros(2, 2, 4, 4), torch.eye(2)), expected)


def test_classification_loss_with_several_texts_of_one_image():
    S = np.random.default_rng(1).normal(size=(2, 4, 2, 2))
    targets = np.array([[1, 1, 0, 0], [0, 0, 1, 0]], dtype=bool)
    logits = torch.tensor(S, requires_grad=True)
    loss = classification_loss(logits, torch.tensor(targets))
    loss.backward()
    assert loss.item() == pytest.approx(reference_classification(S, targets), rel=1e-12)
    expected = finite_difference(lambda x: reference_classification(x, targets), S)
    np.testing.assert_allclose(logits.grad, expected, atol=1e-8)


class LinearClip:
    """Reads 4×4 images: a feature of 5 values that is linear in the pixels."""

    image_size = 4

    def __init__(self):
        self.matrix = np.random.default_rng(7).normal(size=(3 * 4 * 4, 5))

    def adapt(self, pixels):
        return pixels

    def encode_image(self, pixels):
        assert pixels.shape[1:] == (3, 4, 4)
        return pixels.flatten(1) @ torch.tensor(self.matrix)


def reference_calibration(S, pixels, matrix, positive, negative):
    up, down = resize_matrix(2, 6, False), resize_matrix(6, 4, True)
    losses_positive, losses_negative = [], []
    for i in range(len(S)):
        a = down @ (1 / (1 + np.exp(-(up @ S[i] @ up.T)))) @ down.T
        image = np.stack([down @ channel @ down.T for channel in pixels[i]])
        f = (a * image).reshape(-1) @ matrix
        f = f / np.linalg.norm(f)
        cosine = f @ positive[i] / np.linalg.norm(positive[i])
        losses_positive.append(-math.log(min(max(cosine, 1e-4), 0.9999)))
        for n in negative[i]:
            losses_negative.append(-math.log(1 - f @ n / np.linalg.norm(n)))
    return float(np.mean(losses_positive)), float(np.mean(losses_negative))


def test_calibration_loss_and_gradient():
    rng = np.random.default_rng(0)
    aux = LinearClip()
    S, pixels = 2 * rng.normal(size=(2, 2, 2)), rng.normal(size=(2, 3, 6, 6))
    negative = rng.normal(size=(2, 3, 5))
    # texts on the image's side, or the clamp would hide the gradient
    resize = resize_matrix(6, 4, True)
    whole = np.stack([[resize @ c @ resize.T for c in image] for image in pixels]).reshape(2, -1) @ aux.matrix
    positive = whole + 0.5 * rng.normal(size=(2, 5)) * np.linalg.norm(whole, axis=1, keepdims=True)

    logits = torch.tensor(S, requires_grad=True)
    losses = calibration_loss(logits, torch.tensor(pixels), aux, torch.tensor(positive), torch.tensor(negative))
    expected = reference_calibration(S, pixels, aux.matrix, positive, negative)
    assert [loss.item() for loss in losses] == pytest.approx(expected, rel=1e-10)
    for which, loss in enumerate(losses):
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        difference = finite_difference(
            lambda x, k=which: reference_calibration(x, pixels, aux.matrix, positive, negative)[k], S
        )
        assert np.abs(difference).max() > 1e-3
        np.testing.assert_allclose(gradient, difference, atol=1e-7)


def test_calibration_loss_at_cosines_of_one_is_finite():
    aux = LinearClip()
    logits = torch.zeros(1, 2, 2, dtype=torch.double, requires_grad=True)
    pixels = torch.ones(1, 3, 4, 4, dtype=torch.double)
    same = aux.encode_image(pixels)
    positive, negative = calibration_loss(logits, pixels, aux, same, same[:, None].expand(1, 3, 5))
    assert positive.item() == pytest.approx(-math.log(0.9999))
    assert negative.item() == pytest.approx(-math.log(1e-4), rel=1e-4)
    (positive + negative).backward()
    assert torch.isfinite(logits.grad).all()


def test_step2_loss_leaves_out_ignored_pixels():
    labels = torch.tensor([[[1, 0], [255, 255]]], dtype=torch.uint8)
    right = torch.tensor([[[2.0, -2.0], [50.0, -50.0]]])
    unsure = torch.zeros(1, 2, 2)
    # ln(1 + e^-2) for the first head, ln 2 for each of the other three
    expected = math.log(1 + math.exp(-2)) + 3 * math.log(2)
    assert step2_loss((right, unsure, unsure, unsure), labels).item() == pytest.approx(expected)


def test_step2_loss_is_zero_where_all_is_ignored():
    labels = torch.full((1, 2, 2), 255, dtype=torch.uint8)
    logits = torch.ones(1, 2, 2, requires_grad=True)
    loss = step2_loss((logits,) * 4, labels)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 2, 2))


def test_step2_loss_and_gradient():
    """Of each head: (σ(x) − label) over the number of pixels that count."""
    rng = np.random.default_rng(2)
    heads = rng.normal(size=(4, 2, 3, 5))
    labels = rng.choice([0, 1, 255], size=(2, 3, 5)).astype(np.uint8)
    counted, target = labels != 255, labels == 1
    logits = torch.tensor(heads, requires_grad=True)
    loss = step2_loss(list(logits), torch.tensor(labels))
    loss.backward()
    p = 1 / (1 + np.exp(-heads))
    each = -np.log(np.where(target, p, 1 - p))
    assert loss.item() == pytest.approx(each[:, counted].sum() / counted.sum(), rel=1e-12)
    np.testing.assert_allclose(logits.grad, (p - target) * counted / counted.sum(), atol=1e-12)


def test_overlap_is_that_of_pairs_of_one_image():
    """Divided by their maxima: (1, ½, 0), (½, 1, 0), (0, 0, 1), and one of another image."""
    S = torch.tensor([[8.0, 4, -2], [2, 4, -1], [-1, -3, 5], [8, 4, -2]]).view(4, 1, 3).requires_grad_()
    loss = overlap_loss(S, torch.tensor([0, 0, 0, 1]))
    # the first two share ½ + ½ of 1 + 1; the third overlaps with neither
    assert loss.item() == pytest.approx(0.5 / 3, abs=1e-4)
    loss.backward()
    assert S.grad[2:].abs().max() < 1e-4
    assert S.grad[0, 0, 1] > 0 > S.grad[0, 0, 0]


def test_without_pairs_nothing_overlaps():
    S = torch.ones(2, 2, 2, requires_grad=True)
    loss = overlap_loss(S, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0
