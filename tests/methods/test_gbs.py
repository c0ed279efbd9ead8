"""GbS's random alpha maps by their formulas, its losses on arrays that one can check by eye, and its text encoders."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ris_pipeline.config import resolve
from ris_pipeline.datasets import Dataset
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import compute_map
from ris_pipeline.methods import gbs
from ris_pipeline.methods.configs import GbSConfig
from ris_pipeline.networks.weights.clip_weights import load_clip
from ris_pipeline.training.batches import RefBatches
from tiny import make_noise


@pytest.fixture
def config():
    """The small CLIP reads sentences; a VGG-16 of a 32nd of its width."""
    return GbSConfig(
        text_encoder="clip", clip="shapes", clip_weights=None, vgg_weights=None, width=2, input_size=64, batch_size=4
    )


def perlin_noise(angles, size):
    """Perlin's noise of one formula a pixel, in numpy: slopes at the corners, blended by 6t⁵ − 15t⁴ + 10t³."""
    n = len(angles) - 1
    noise = np.zeros((size, size))
    fade = lambda t: 6 * t**5 - 15 * t**4 + 10 * t**3  # noqa: E731
    for i in range(size):
        for j in range(size):
            y, x = i * n / size, j * n / size
            for a in (int(y), int(y) + 1):
                for b in (int(x), int(x) + 1):
                    share = fade(1 - abs(y - a)) * fade(1 - abs(x - b))
                    noise[i, j] += share * (np.cos(angles[a, b]) * (x - b) + np.sin(angles[a, b]) * (y - a))
    return noise


@pytest.mark.parametrize("n_cells", [1, 2])
def test_perlin_noise_by_numpy(n_cells):
    torch.manual_seed(0)
    angles = 2 * np.pi * torch.rand(n_cells + 1, n_cells + 1).numpy()
    torch.manual_seed(0)
    found = gbs.draw_perlin_noise(n_cells, 10)
    np.testing.assert_allclose(found.numpy(), perlin_noise(angles, 10), atol=1e-6)
    assert found[0, 0] == 0  # at a corner of the cells


def test_a_gaussian_peaks_at_one_and_falls_by_its_deviation():
    torch.manual_seed(2)
    deviations = set()
    for _ in range(50):
        alpha = gbs.draw_gaussian(64)
        assert 0.9 < alpha.max() <= 1
        y, x = divmod(int(alpha.argmax()), 64)
        # log of a Gaussian is a parabola: its second difference is −1/σ².
        for line in (alpha[:, x], alpha[y]):
            k = min(max(int(line.argmax()), 1), 62)
            second = line[k - 1 : k + 2].log().diff().diff().item()
            deviations.add(round((-1 / second) ** 0.5, 2))
    assert all(sigma == round(sigma) and 2 <= sigma < 16 for sigma in deviations)
    assert len(deviations) > 8


def test_the_first_half_is_perlin_and_the_rest_gaussian():
    torch.manual_seed(0)
    alphas, targets = gbs.draw_alphas(5, 64)
    assert alphas.shape == (5, 64, 64)
    assert targets.shape == (5, 2, 64, 64)
    assert (alphas >= 0).all()
    assert (alphas <= 1).all()
    torch.testing.assert_close(targets[:3, 0], alphas[:3])
    torch.testing.assert_close(targets[:3].sum(dim=1), torch.ones(3, 64, 64))
    a1, a2 = targets[3:].unbind(1)
    torch.testing.assert_close(alphas[3:], a1 / (a1 + a2 + 1e-7))
    assert (targets[3:].sum(dim=1) < 0.5).any(dim=2).any()  # far from both centres neither sentence is right


def test_perlin_alphas_reach_both_images():
    torch.manual_seed(0)
    alphas = [gbs.draw_perlin_alpha(32) for _ in range(40)]
    assert all(alpha.min() == 0 for alpha in alphas)
    assert sum(alpha.max() > 0.9 for alpha in alphas) > 30  # a product of two need not reach 1
    assert {bool(alpha[0, 0] > 0.5) for alpha in alphas} == {True, False}  # some are inverted


def test_separation_losses_by_hand():
    """Stride 2 of a 4×4 alpha: the nearest neighbour is the first pixel of each 2×2."""
    alpha = torch.tensor([[1.0, 9, 0, 9], [9, 9, 9, 9], [0.5, 9, 1, 9], [9, 9, 9, 9]])
    targets = torch.stack([torch.stack([alpha, 1 - alpha])] * 2)
    first = torch.tensor([[1.0, 0], [0.5, 1]]).expand(2, 2, 2)
    heat = gbs.HeatMaps(first, first, torch.full((2, 2, 2), 0.25), torch.stack([first[0], torch.full((2, 2), 9.0)]))
    losses = gbs.separation_losses(heat, targets, torch.tensor([True, False]))
    assert losses["own"].item() == pytest.approx((1 + 1 + 0 + 1) / 4)  # the second should have been 1 − alpha
    assert losses["free"].item() == pytest.approx(0.25**2)
    assert losses["foreign"].item() == pytest.approx((1 + 0.25 + 1) / 4)  # of the first alone
    assert gbs.separation_losses(heat, targets, torch.tensor([False, False]))["foreign"] == 0


def test_matching_losses_by_hand():
    """Two images, two levels, two words of which the second sentence has one."""
    similarity = torch.zeros(2, 2, 2, 3)
    similarity[0, 0, 1] = torch.tensor([0.5, 0.4, 0.2])  # the better level counts
    similarity[1, 1, 0] = torch.tensor([0.3, 0.6, 0.9])  # 0.9 belongs to padding
    is_word = torch.tensor([[True, True], [True, False]])

    def pool(*words):
        return math.log(sum(math.exp(5 * word) for word in words)) / 5

    def contrast(scores):
        rows = [-math.log(math.exp(10 * row[i]) / sum(math.exp(10 * s) for s in row)) for i, row in enumerate(scores)]
        return sum(rows) / len(rows)

    sentences = np.array([[0.5, 0.0], [0.0, 0.3]])
    words = np.array([[pool(0.4, 0.2), pool(0)], [pool(0, 0), pool(0.6)]])
    expected = sum(contrast(scores) + contrast(scores.T) for scores in (sentences, words))
    found = gbs.matching_losses(similarity, is_word, ["red", "blue"], 10.0, 5.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_blended_with_its_other_half(config, tmp_path, monkeypatch):
    """With alpha 1 everywhere the network sees the first half; a sentence of a blend's own is never a foreign one."""
    dataset = make_noise(tmp_path)
    torch.manual_seed(0)
    task = gbs.build_task(gbs.build(config, None), config).eval()
    batch = RefBatches(gbs.plan(dataset, config, 0), 1, 64)[0]
    assert len({dataset.refs[draw.ref].image_id for draw in batch.draws}) == len(batch.draws) == 3
    seen = []
    levels = task.network.levels
    monkeypatch.setattr(task.network, "levels", lambda pixels: seen.append(pixels) or levels(pixels))
    monkeypatch.setattr(gbs, "draw_alphas", lambda n, size: (torch.ones(n, size, size), torch.ones(n, 2, size, size)))
    losses = task(batch)
    assert torch.equal(seen[0], batch.pixels[:1])
    assert torch.equal(seen[1], batch.pixels[:2])
    assert losses["foreign"] == 0  # one blend: the rolled sentence is its own
    assert losses["loss"].item() == pytest.approx(
        sum(losses[name].item() for name in ("own", "free", "foreign")) + 0.1 * losses["match"].item()
    )
    assert task.rate(49_999, 100_000) == 1
    assert task.rate(50_000, 100_000) == pytest.approx(0.1)


def test_one_image_alone_cannot_be_blended(config, tmp_path):
    dataset = make_noise(tmp_path)
    alone = Dataset("alone", "train", dataset.images, dataset.refs[:2])
    with pytest.raises(RisError, match="alone has refs on one image only in split 'train'"):
        gbs.plan(alone, config, 0)
    task = gbs.build_task(gbs.build(config, None), config)
    batch = RefBatches(gbs.plan(dataset, GbSConfig(batch_size=1), 0), 1, 64)[0]
    with pytest.raises(RisError, match="raise batch_size"):
        task(batch)


@pytest.mark.parametrize("image_encoder", ["vgg", "clip"])
def test_the_answer_is_the_root_of_both_maps(config, image_encoder):
    config = replace(config, image_encoder=image_encoder)
    torch.manual_seed(0)
    network = gbs.build(config, None).eval()
    responder = gbs.wrap(network, config)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        image = responder.encode_images(pixels)[1]
        texts = responder.encode_texts(["red circle", "the small one on the left"])
        grids = responder.respond(image, texts)
        levels = network.levels(pixels[1:])
        heat = network.separate([level.expand(2, -1, -1, -1) for level in levels], texts[:, 0])
        words = gbs.ground_words(network.project_levels(levels), texts[:, 1:]).view(2, 4, 4)
    assert grids.shape == (2, *responder.grid_hw) == (2, 4, 4)
    torch.testing.assert_close(grids, (heat.clamp(0, 1) * words.clamp(0, 1)).sqrt())
    assert compute_map(grids, responder.rule, 64, (50, 70)).shape == (2, 50, 70)


@pytest.mark.parametrize("image_encoder", ["vgg", "clip"])
def test_a_trained_network_is_built_from_its_file_alone(config, image_encoder, tmp_path):
    config = replace(config, image_encoder=image_encoder)
    torch.manual_seed(0)
    network = gbs.build(config, None)
    torch.save(network.state_dict(), tmp_path / "model.pth")
    again = gbs.build(replace(config, vgg_weights="no such file"), tmp_path / "model.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_the_clips_resnet_starts_where_the_clip_ended_and_learns(config):
    network = gbs.build(replace(config, image_encoder="clip"), None)
    clip = load_clip("shapes", None)
    own = dict(network.features.visual.named_parameters())
    given = dict(clip.model.visual.named_parameters())
    assert all(torch.equal(own[name], given[name]) for name in given)
    assert own["layer1.0.conv1.weight"].requires_grad
    assert not any(parameter.requires_grad for parameter in network.text.parameters())


def test_vgg_has_five_levels():
    with pytest.raises(RisError, match=r"levels = 6: should be less than or equal to 5"):
        resolve(GbSConfig, {"levels": 6})


def test_transformers_missing_is_told(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RisError, match=r"pip install .*\[methods\]"):
        gbs.build(GbSConfig(vgg_weights=None, width=2), None)
