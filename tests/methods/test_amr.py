"""AMR's two trainings and its answer, against sums done by hand."""

import numpy as np
import pytest
import torch

from ris_pipeline.datasets import Expression
from ris_pipeline.methods import amr
from ris_pipeline.methods.configs import AmrConfig
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.draws import Draw
from tiny import draw_epoch, make_noise

SENTENCES = ["the red star", "left circle", "the red star"]


@pytest.fixture
def config(tiny_clip):
    return AmrConfig(
        backbone=str(tiny_clip), backbone_weights=None, clip=str(tiny_clip), clip_weights=None, input_size=64,
        hidden=5, epochs=4, cam_epochs=1, batch_size=3, lr=0.1, weight_recalibration=0.3,
    )  # fmt: skip


@pytest.fixture
def task(config):
    torch.manual_seed(0)
    return amr.build_task(amr.build(config, None), config).train()


@pytest.fixture
def batch():
    draws = [Draw(i, Expression(i, sentence), ()) for i, sentence in enumerate(SENTENCES)]
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Batch(pixels, torch.arange(3), draws, None, (0, 1, 2))


def logistic(logits, targets):
    p = 1 / (1 + np.exp(-logits))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()


def maps_of(network, batch):
    """⟨V, T⟩ of all images and sentences in each branch, float64 (3, 3, h, w)."""
    with torch.no_grad():
        T = network.encode_text(network.clip.tokenize(SENTENCES)).double().numpy()
        V = [network.encode_image(batch.pixels, branch).double().numpy() for branch in ("spotlight", "compensation")]
    return [np.einsum("bchw,nc->bnhw", v, T) for v in V]


# Images 0 and 2 are said the same of: it is true of both.
TARGETS = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_the_first_part_is_plain_cam_training(task, batch):
    spotlight, _ = maps_of(task.network, batch)
    task.before_step(0, 8, task.optimizer())
    losses = task(batch)
    assert set(losses) == {"loss"}
    assert losses["loss"].item() == pytest.approx(logistic(spotlight.mean(axis=(2, 3)), TARGETS), rel=1e-5)


def test_the_second_part_by_hand(task, batch):
    logits = [cam.mean(axis=(2, 3)) for cam in maps_of(task.network, batch)]
    spotlight, compensation = (np.maximum(cam[range(3), range(3)], 0) for cam in maps_of(task.network, batch))
    task.before_step(2, 8, task.optimizer())
    losses = {name: value.item() for name, value in task(batch).items()}
    assert losses["cls1"] == pytest.approx(logistic(logits[0], TARGETS), rel=1e-5)
    assert losses["cls2"] == pytest.approx(logistic(logits[1], TARGETS), rel=1e-5)
    assert losses["recalibration"] == pytest.approx(np.abs(spotlight - compensation).mean(), rel=1e-5)
    whole = 0.5 * losses["cls1"] + 0.5 * losses["cls2"] + 0.3 * losses["recalibration"]
    assert losses["loss"] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "learning"),
    [
        (0, {"spotlight", "spotlight_head", "lan_project"}),
        # The spotlight's ResNet is fixed, its head is not; both branches share the sentences' weights.
        (2, {"compensation", "compensation_head", "spotlight_head"}),
    ],
)
def test_what_each_part_changes(step, learning, task, batch):
    optimizer = task.optimizer()
    task.before_step(step, 8, optimizer)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    task(batch)["loss"].backward()
    optimizer.step()
    changed = {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in changed} == learning


def test_rates_start_anew_in_the_second_part(task):
    """A quarter of the epochs is plain: 2 steps of 8."""
    rates = [task.rate(step, 8) for step in range(8)]
    expected = [1, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == pytest.approx([value**0.9 for value in expected])


def test_what_is_new_learns_faster(task):
    optimizer = task.optimizer()
    spotlight, compensation, heads = optimizer.param_groups
    assert (spotlight["lr"], compensation["lr"], heads["lr"]) == pytest.approx((0.1, 1.0, 0.1))
    task.before_step(2, 8, optimizer)
    assert heads["lr"] == pytest.approx(0.1)
    task.before_step(1, 8, optimizer)
    assert heads["lr"] == pytest.approx(1.0)


def test_the_answer_is_the_mean_of_both_maps(config):
    responder = amr.wrap(amr.build(config, None), config)
    one_hot = torch.eye(2).view(2, 1, 2)  # sentence 0 weighs channel 0, sentence 1 channel 1
    spotlight = torch.tensor([[[4.0, 2.0, -1.0]], [[-1.0, -2.0, -3.0]]])[None]
    compensation = torch.tensor([[[0.0, 5.0, 10.0]], [[1.0, 0.0, 0.0]]])[None]
    grids = responder.respond((spotlight, compensation), one_hot[:, 0])
    assert grids.dtype == torch.float32
    # First (1, ½, 0) and (0, ½, 1); then nothing and (1, 0, 0).
    torch.testing.assert_close(grids, torch.tensor([[[0.5, 0.5, 0.5]], [[0.5, 0.0, 0.0]]]), rtol=0, atol=1e-4)


def test_a_batch_has_one_ref_of_an_image(config, tmp_path):
    dataset = make_noise(tmp_path)
    plan = amr.plan(dataset, config, 0)
    for batch in draw_epoch(plan, 0):
        images = [dataset.refs[draw.ref].image_id for draw in batch]
        assert len(set(images)) == len(images)


def test_trained_weights_bring_the_same_answers(config, batch, tmp_path):
    from safetensors.torch import save_file

    network = amr.build(config, None)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "trained.safetensors"
    )
    again = amr.build(config, tmp_path / "trained.safetensors")
    for found, expected in zip(maps_of(again, batch), maps_of(network, batch), strict=True):
        np.testing.assert_array_equal(found, expected)
