"""Training of IRNet: its crops, and what learns and what does not."""

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn

from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets.io.labels import save_label
from ris_pipeline.errors import RisError
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.networks.parts.stages import StageBackbone
from ris_pipeline.training import checkpoints
from ris_pipeline.training import irnet as training_irnet
from ris_pipeline.training.irnet import WEIGHTS, SeedFile, augment, train_irnet

MEAN_GREY = (124, 116, 104)
CONFIG = PseudolabelConfig(irn_epochs=2, irn_batch=2, irn_crop=32, irn_lr=0.05, irn_dp_lr=0.1, radius=3)


class TinyStages(StageBackbone):
    """Five average poolings with a 1×1 convolution and a BatchNorm each."""

    stage_channels = (4, 4, 4, 4, 4)
    stage_strides = (4, 4, 8, 16, 16)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(5))

    def stages(self, pixels):
        return [
            layer(nn.functional.avg_pool2d(pixels, stride, ceil_mode=True))
            for layer, stride in zip(self.layers, self.stage_strides, strict=True)
        ]


def halves(h, w):
    """An image that is green in its upper half and red below, the object's label 1 where it is red."""
    image, seed = np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.uint8)
    image[: h // 2, :, 1] = 200
    image[h // 2 :, :, 0], seed[h // 2 :] = 200, 1
    return image, seed


@pytest.mark.parametrize("hw", [(24, 40), (100, 80), (20, 200)])
def test_crops_keep_image_and_labels_together(hw):
    image, seed = halves(*hw)
    met = Counter()
    for i in range(40):
        cut, labels = augment(image, seed, 48, np.random.default_rng(i))
        assert cut.shape == (48, 48, 3)
        assert labels.shape == (48, 48)
        assert (cut.dtype, labels.dtype) == (np.uint8, np.uint8)
        outside = labels == 255
        assert (cut[outside] == MEAN_GREY).all()
        # At the seam the image is smooth and the label is not: two rows, or three when enlarged.
        agrees = np.where(labels == 1, cut[..., 0] > 150, cut[..., 1] > 150) | outside
        assert (~agrees).any(axis=1).sum() <= 3
        met.update(np.unique(labels).tolist())
    assert set(met) <= {0, 1, 255}
    assert met[0] > 10
    assert met[1] > 10
    # Enlarged 1.5 times at most and halved at least: 24 rows never fill 48; 100 and 80 always do but below 0.6.
    assert met[255] > 35 if hw[0] < 30 else met[255] < 20


def test_crops_are_rescaled_by_a_half_to_three_halves():
    image, seed = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    sides = [round(np.sqrt((augment(image, seed, 96, np.random.default_rng(i))[1] == 0).sum())) for i in range(200)]
    assert 20 <= min(sides) < 25
    assert 55 < max(sides) <= 60
    assert np.mean(sides) == pytest.approx(40, abs=3)


class Fixed:
    """Random numbers that scale by the given factor, mirror nothing and cut at the upper left."""

    def __init__(self, scale):
        self.scale = scale

    def uniform(self, low, high):
        return self.scale

    def random(self):
        return 0.9

    def integers(self, low, high):
        return 0


def test_an_image_is_made_smaller_with_antialiasing():
    """A checkerboard of single pixels at half the size is even grey; without antialiasing it stays a pattern."""
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 255).astype(np.uint8)
    cut, _ = augment(np.repeat(board[:, :, None], 3, axis=2), np.zeros((32, 32), np.uint8), 16, Fixed(0.5))
    assert np.abs(cut[4:12, 4:12].astype(int) - 127).max() <= 2


def test_labels_are_taken_at_the_centres_of_pixels():
    """Columns 0 1 2 3 at half the size: centres 1.0 and 3.0 of the old ones, so columns 1 and 3."""
    seed = np.tile(np.array([0, 1, 255, 0], np.uint8), (4, 1))
    _, cut = augment(np.zeros((4, 4, 3), np.uint8), seed, 2, Fixed(0.5))
    assert cut.tolist() == [[1, 0], [1, 0]]


def test_crops_are_mirrored_half_of_the_time():
    image, seed = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    seed[:, :20] = 1
    image[:, :20] = 200
    n_mirrored = 0
    for i in range(200):
        cut, labels = augment(image, seed, 96, np.random.default_rng(i))
        is_mirrored = np.nonzero(labels == 1)[1].mean() > np.nonzero(labels == 0)[1].mean()
        bright = (cut[..., 0] > 150) & (labels != 255)
        assert is_mirrored == (np.nonzero(bright)[1].mean() > np.nonzero(labels == 0)[1].mean())
        n_mirrored += is_mirrored
    assert 70 < n_mirrored < 130


def test_placement_is_random():
    """A small image is put anywhere into the crop, a large one is cut anywhere."""
    small = [np.argmax((augment(*halves(20, 20), 96, np.random.default_rng(i))[1] != 255).any(0)) for i in range(60)]
    assert min(small) < 8
    assert max(small) > 60
    image, seed = halves(400, 400)
    foreground = [(augment(image, seed, 48, np.random.default_rng(i))[1] == 1).mean() for i in range(60)]
    assert min(foreground) == 0
    assert max(foreground) == 1


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for i in range(5):
        image, seed = halves(40, 48)
        image = np.clip(image + rng.integers(0, 40, image.shape), 0, 255).astype(np.uint8)
        seed[:, 40:] = 255
        Picture.fromarray(image).save(tmp_path / f"{i}.png")
        save_label(tmp_path / f"{i}.label.png", seed)
        files.append(SeedFile(tmp_path / f"{i}.png", tmp_path / f"{i}.label.png"))
    return files


def trained(files, folder=None, seed=0, workers=0, report=lambda step, losses: None, net_seed=0):
    torch.manual_seed(net_seed)
    net = IRNet(TinyStages())
    shifted = []
    # What the network says of the crops once it has learned: the mean of this is to be taken off.
    net.register_forward_hook(lambda net, _, out: None if net.training else shifted.append(out[1].mean((0, 2, 3))))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    device = torch.device("cpu")
    with TemporaryDirectory() as other:
        train_irnet(
            net, files, CONFIG, folder=folder or Path(other), seed=seed, device=device, workers=workers, report=report
        )
    return net, before, shifted


def test_the_heads_learn_and_the_backbone_does_not(files):
    net, before, _ = trained(files)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone."), name


def test_steps_and_losses_are_reported(files):
    seen = {}
    trained(files, report=seen.__setitem__)
    assert list(seen) == [0, 1, 2, 3]  # 5 files in batches of 2, twice
    for losses in seen.values():
        terms = ("alike", "different", "foreground_displacement", "background_displacement")
        assert set(losses) == {"loss", *terms}
        assert losses["loss"] == pytest.approx(sum(losses[name] for name in terms) / 2)
        assert all(np.isfinite(value) for value in losses.values())


def test_the_mean_displacement_of_the_crops_is_stored(files):
    net, _, shifted = trained(files)
    assert len(shifted) == 4
    torch.testing.assert_close(net.mean_shift.running_mean, torch.stack(shifted).mean(0))
    assert net.mean_shift.running_mean.any()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_same_seed_gives_the_same_weights(files, workers):
    first, again = trained(files)[0].state_dict(), trained(files, workers=workers)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = trained(files, seed=1)[0].state_dict()
    assert not torch.equal(first["fc_edge6.weight"], other["fc_edge6.weight"])


@pytest.mark.parametrize("broken_at", [1, 3])
def test_an_interrupted_training_ends_in_the_same_weights(broken_at, files, tmp_path, monkeypatch):
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    calm.mkdir()
    broken.mkdir()
    expected = trained(files, calm)[0].state_dict()

    def break_off(step, losses):
        if step == broken_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    with pytest.raises(KeyboardInterrupt):
        trained(files, broken, report=break_off)
    seen = {}
    # From other initial values, and with another process to read: all that counts is in the checkpoint.
    found = trained(files, broken, report=seen.__setitem__, workers=1, net_seed=1)[0].state_dict()
    assert list(seen) == list(range(broken_at, 4))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in (WEIGHTS, checkpoints.TRAINING_LOG):
        assert (broken / name).read_bytes() == (calm / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (broken / checkpoints.TRAINING_LOG).read_text().splitlines()]
    assert steps == [0, 1, 2, 3]
    assert sorted(path.name for path in broken.iterdir()) == [WEIGHTS, checkpoints.TRAINING_LOG, checkpoints.RESUME]


@pytest.mark.parametrize("published", [False, True])
def test_a_finished_training_is_not_repeated(published, files, tmp_path):
    """A run that broke off later takes the weights from the checkpoint, whatever lies there; a repair has no other."""
    expected = trained(files, tmp_path)[0].state_dict()
    if published:
        (tmp_path / checkpoints.RESUME).unlink()
    else:
        whole = (tmp_path / WEIGHTS).read_bytes()
        (tmp_path / WEIGHTS).write_bytes(whole[:-1] + b"x")
    seen = {}
    net, _, shifted = trained(files, tmp_path, report=seen.__setitem__, net_seed=1)
    found = net.state_dict()
    assert not seen
    assert not shifted
    assert published or (tmp_path / WEIGHTS).read_bytes() == whole
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_loss_that_is_not_finite_names_the_refs(files, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    real = training_irnet.compute_irnet_losses
    n_calls = 0

    def losses_of(*arguments):
        nonlocal n_calls
        n_calls += 1
        losses = real(*arguments)
        return losses._replace(alike=losses.alike * float("nan")) if n_calls == 3 else losses

    monkeypatch.setattr(training_irnet, "compute_irnet_losses", losses_of)
    with pytest.raises(RisError, match=r"step 2: the loss is not finite; refs of the batch: \['\d.label', '\d"):
        trained(files, tmp_path)
    assert checkpoints.TrainingState(tmp_path, {}).load() == 2
