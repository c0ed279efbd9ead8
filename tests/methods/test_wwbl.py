"""WWbL's targets and losses on arrays that one can check by eye, and its answers."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ris_pipeline.maps.rule import compute_map, compute_mask
from ris_pipeline.methods import wwbl
from ris_pipeline.methods.configs import WWbLConfig
from ris_pipeline.training.batches import RefBatches
from tiny import make_noise


@pytest.fixture
def config():
    """The small CLIP reads, gives relevance and judges; a VGG-16 of a 32nd of its width."""
    return WWbLConfig(
        clip="shapes", clip_weights=None, aux_clip="shapes", aux_weights=None, vgg_weights=None, width=2, input_size=64,
        batch_size=3,
    )  # fmt: skip


class MeanColour(nn.Module):
    """A CLIP whose image feature is the mean of each channel."""

    def encode_image(self, pixels):
        return pixels.mean(dim=(2, 3))


def test_targets_are_stretched_before_the_last_resize():
    relevance = torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]])
    targets = wwbl.compute_targets(relevance, 4, 7)
    assert targets.shape == (2, 7, 7)
    # Half-pixel centres from 2 to 4: 1, 1.5, 2.5, 3, stretched to 0, ¼, ¾, 1; by their corners to 7.
    assert targets[0, 0].tolist() == pytest.approx([0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 1])
    assert targets[1].abs().max() == 0  # nothing stands out


def test_mask_losses_by_hand():
    """The left half is red, the right half green; the first mask keeps the left half, the second everything."""
    pixels = torch.zeros(2, 3, 2, 2)
    pixels[:, 0, :, 0] = pixels[:, 1, :, 1] = 1
    masks = torch.stack([torch.tensor([[1.0, 0], [1, 0]]), torch.ones(2, 2)])
    red = torch.tensor([[1.0, 0, 0], [1, 0, 0]])
    losses = wwbl.mask_losses(masks, pixels, MeanColour(), red)
    assert losses["fg"].item() == pytest.approx((0 + 1 - 0.5**0.5) / 2)
    assert losses["bg"].item() == pytest.approx(0)  # green, and nothing at all
    assert losses["area"].item() == pytest.approx(0.75)
    inverted = wwbl.mask_losses(1 - masks, pixels, MeanColour(), -red)
    assert inverted["bg"].item() == pytest.approx((1 + 0.5**0.5) / 2)  # |−1| and |−√½|


def test_a_step_weighs_its_losses(config, tmp_path):
    dataset = make_noise(tmp_path)
    torch.manual_seed(0)
    task = wwbl.build_task(wwbl.build(config, None), replace(config, weight_area=2.0)).eval()
    losses = task(RefBatches(wwbl.plan(dataset, config, 0), 1, 64)[0])
    weights = {"relevance": 16, "fg": 0.25, "bg": 0.5, "area": 2}
    expected = sum(weight * losses[name].item() for name, weight in weights.items())
    assert losses["loss"].item() == pytest.approx(expected)
    assert task.rate(3, 10) == 1


def test_the_frozen_clips_do_not_learn(config, tmp_path):
    task = wwbl.build_task(wwbl.build(config, None), config).train()
    losses = task(RefBatches(wwbl.plan(make_noise(tmp_path), config, 0), 1, 64)[0])
    losses["loss"].backward()
    assert not task.aux.training
    assert not task.network.clip.training
    learnt = {name.partition(".")[0] for name, p in task.network.named_parameters() if p.grad is not None}
    assert learnt == {"features", "project", "bottleneck", "up1", "up2"}
    assert all(parameter.grad is None for parameter in task.aux.parameters())


def test_refs_of_one_image_share_its_encoding(config, tmp_path):
    """The losses of a batch in which images repeat are those of the same refs, each with an image of its own."""
    dataset = make_noise(tmp_path)
    torch.manual_seed(0)
    task = wwbl.build_task(wwbl.build(config, None), config).eval()
    batch = RefBatches(wwbl.plan(dataset, replace(config, batch_size=6, refs_per_image=2), 0), 1, 64)[0]
    assert (len(batch.pixels), len(batch.draws)) == (3, 6)
    apart = replace(batch, pixels=batch.pixels[batch.image_of], image_of=torch.arange(6))
    together, alone = task(batch), task(apart)
    for name in together:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-4, atol=1e-5)


def test_the_answer_is_the_mask(config):
    torch.manual_seed(0)
    network = wwbl.build(config, None).eval()
    responder = wwbl.wrap(network, config)
    with torch.no_grad():
        image = responder.encode_images(torch.randn(2, 3, 64, 64))[1]
        grids = responder.respond(image, responder.encode_texts(["red circle", "left one"]))
    assert grids.shape == (2, *responder.grid_hw) == (2, 32, 32)
    maps = compute_map(grids, responder.rule, 64, (40, 50))
    expected = F.interpolate(grids[:, None].sigmoid(), (40, 50), mode="bilinear", align_corners=True)[:, 0]
    torch.testing.assert_close(maps, expected / (expected.amax(dim=(1, 2), keepdim=True) + 1e-5))
    assert torch.equal(compute_mask(maps, responder.rule), maps > 0.5)


def test_a_trained_network_is_built_from_its_file_alone(config, tmp_path):
    network = wwbl.build(config, None)
    torch.save(network.state_dict(), tmp_path / "model.pth")
    again = wwbl.build(replace(config, vgg_weights="no such file"), tmp_path / "model.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
