import json
import math

import numpy as np
import pytest
import torch

from ris_pipeline.artifacts.layout import CLIP_CONFIG
from ris_pipeline.config import ClipConfig
from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.weights.clip_weights import SHAPES_CLIP
from ris_pipeline.process.ranks import ALONE
from ris_pipeline.shapes.captions import Pair
from ris_pipeline.training import checkpoints, contrastive
from ris_pipeline.training.contrastive import ContrastiveTask, PairBatches, Phase, build_small_clip, curriculum
from ris_pipeline.training.loop import train
from ris_pipeline.training.losses import contrastive_loss
from tiny import TINY


def phase(n_steps=3, **changes):
    values = {
        "name": "object", "side": 64, "n_things": (1, 1), "with_siblings": True, "batch_size": 4,
        "n_steps": n_steps, "n_decay": n_steps, "lr": 1e-2,
    }  # fmt: skip
    return Phase(**values | changes)


def unit(rng, n, d):
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference_loss(image, text, scale, captions):
    """Pair by pair in float64: −ln of the own pair's share among the pairs with another caption, both ways."""
    n = len(captions)
    total = 0.0
    for i in range(n):
        others = [j for j in range(n) if captions[j] != captions[i]]
        own = scale * image[i] @ text[i]
        for rivals in ([scale * image[i] @ text[j] for j in others], [scale * image[j] @ text[i] for j in others]):
            total -= own - math.log(math.exp(own) + sum(math.exp(rival) for rival in rivals))
    return total / (2 * n)


@pytest.mark.parametrize(
    "captions",
    [["a", "b", "c", "d", "e"], ["a", "b", "a", "a", "b"], ["a", "b", "b", "c", "d"]],
)
def test_contrastive_loss_leaves_pairs_of_one_caption_out(captions):
    rng = np.random.default_rng(0)
    image, text = unit(rng, 5, 7), unit(rng, 5, 7)
    loss = contrastive_loss(torch.tensor(image), torch.tensor(text), torch.tensor(12.5, dtype=torch.float64), captions)
    assert loss.item() == pytest.approx(reference_loss(image, text, 12.5, captions), rel=1e-12)


def test_contrastive_loss_by_hand():
    """Two orthogonal pairs, scale ln 3: the own pair has the weight 3 of 3 + 1."""
    eye = torch.eye(2)
    loss = contrastive_loss(eye, eye, torch.tensor(math.log(3)), ["a", "b"])
    assert loss.item() == pytest.approx(math.log(4 / 3))
    assert contrastive_loss(eye, eye, torch.tensor(3.0), ["a", "a"]).item() == 0  # no rival is left


def test_contrastive_loss_has_finite_gradients_where_captions_repeat():
    features = torch.nn.functional.normalize(torch.randn(4, 3), dim=1).requires_grad_()
    contrastive_loss(features, features.detach(), torch.tensor(5.0), ["a", "a", "b", "b"]).backward()
    assert features.grad.isfinite().all()


def test_batches_are_normalised_pictures_and_their_captions(monkeypatch):
    grey = np.full((64, 64, 3), 51, np.uint8)  # 0.2
    pairs = (Pair(grey, f"caption {i}") for i in range(100))
    monkeypatch.setattr(contrastive, "generate_pairs", lambda *_: pairs)
    pixels, captions = PairBatches([phase()], seed=0)[0]
    assert captions == [f"caption {i}" for i in range(4)]
    assert pixels.shape == (4, 3, 64, 64)
    assert pixels.dtype == torch.float32
    expected = [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[2, :, 30, 40], torch.tensor(expected), atol=1e-5, rtol=0)


def test_batches_depend_on_the_seed_alone():
    def batches(seed):
        return [PairBatches([phase(side=96)], seed)[k] for k in range(2)]

    for (pixels, captions), (same_pixels, same_captions) in zip(batches(1), batches(1), strict=True):
        assert torch.equal(pixels, same_pixels)
        assert captions == same_captions
    assert not torch.equal(batches(1)[0][0], batches(2)[0][0])
    assert not torch.equal(batches(1)[0][0], batches(1)[1][0])


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    rate = phase(n_steps=1000, lr=2.0).rate
    assert rate(0) == pytest.approx(0.02)
    assert rate(49) == pytest.approx(1.0, rel=0.01)  # half-way up, the cosine still near 1
    assert rate(500) == pytest.approx(1.0)
    assert rate(1000) == pytest.approx(0.0)
    assert rate(250) == pytest.approx(1 + math.sqrt(0.5))


def test_the_curriculum_follows_the_configuration():
    objects = {"object_steps": 7, "object_decay": 8, "object_batch": 5, "object_lr": 0.1}
    scenes = {"scene_steps": 9, "scene_batch": 6, "scene_lr": 0.2, "mask_steps": 3, "mask_lr": 0.3}
    first, second, third = curriculum(ClipConfig(**objects, **scenes))
    assert (first.n_steps, first.n_decay, first.batch_size, first.lr) == (7, 8, 5, 0.1)
    assert (second.n_steps, second.n_decay, second.batch_size, second.lr) == (9, 9, 6, 0.2)
    assert (third.n_steps, third.n_decay, third.batch_size, third.lr) == (3, 3, 6, 0.3)
    assert (second.side, second.n_things) == (third.side, third.n_things)
    assert second.stream != third.stream  # new pictures, not the same again
    assert first.side < second.side
    assert first.n_things[1] < second.n_things[1]
    assert (first.with_siblings, second.with_siblings) == (False, True)


def train_clip(folder, phases, clip_seed=0, report=lambda step, values: None, precision="fp32"):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(clip_seed)
    clip = Clip.from_config(TINY)
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    train(
        ContrastiveTask(clip, phases), PairBatches(phases, 0), folder, device=torch.device("cpu"),
        precision=precision, workers=0, ranks=ALONE, seed=0, report=report,
    )  # fmt: skip
    return clip.model.state_dict(), before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_moves_the_clip_and_leaves_places_to_c4(precision, tmp_path):
    seen = {}
    after, before = train_clip(tmp_path, [phase(side=96)], report=seen.__setitem__, precision=precision)
    assert list(seen) == [0, 1, 2]
    assert all(np.isfinite(values["loss"]) and 0 <= values["accuracy"] <= 1 for values in seen.values())
    assert not after["visual.attnpool.positional_embedding"].any()
    for name in ("visual.conv1.weight", "visual.attnpool.c_proj.weight", "text_projection", "logit_scale"):
        assert not torch.equal(after[name], before[name]), name
    assert after["logit_scale"] <= math.log(100) + 1e-6


@pytest.mark.parametrize("broken_at", [1, 2, 4])
def test_an_interrupted_training_ends_in_the_same_weights(broken_at, tmp_path, monkeypatch):
    """In the middle of a phase, and at the border of two, where the optimiser begins anew."""
    phases = [phase(side=96, n_steps=2), phase(side=96, n_steps=4, stream=1)]
    expected, _ = train_clip(tmp_path / "calm", phases)

    def break_off(step, values):
        if step == broken_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    with pytest.raises(KeyboardInterrupt):
        train_clip(tmp_path / "broken", phases, report=break_off)
    seen = {}
    found, _ = train_clip(tmp_path / "broken", phases, clip_seed=1, report=seen.__setitem__)
    assert list(seen) == list(range(broken_at, 6))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    logs = [(tmp_path / name / checkpoints.TRAINING_LOG).read_bytes() for name in ("calm", "broken")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == list(range(6))


def test_a_new_phase_begins_without_the_moments_of_the_last(tmp_path):
    """Adam's first step is the learning rate itself, whatever the size of the gradient: after moments it is not."""
    moved = []

    def keep(step, values):
        moved.append(task.network.model.text_projection.detach().clone())

    phases = [phase(side=96, n_steps=2), phase(side=96, n_steps=1, stream=1, lr=1e-2)]
    torch.manual_seed(0)
    task = ContrastiveTask(Clip.from_config(TINY), phases)
    train(
        task, PairBatches(phases, 0), tmp_path, device=torch.device("cpu"), precision="fp32", workers=0,
        ranks=ALONE, seed=0, report=keep,
    )  # fmt: skip
    rate = 1e-2 / 100
    step = (moved[2] - moved[1] * (1 - rate * 0.05)).abs()
    torch.testing.assert_close(step, torch.full_like(step, rate), rtol=0, atol=1e-2 * rate)


def test_a_loss_that_is_not_finite_names_captions_and_the_phase_s_rate(tmp_path):
    with pytest.raises(RisError, match=r"step 2: the loss is not finite; captions of the batch: .*lower scene_lr"):
        train_clip(tmp_path, [phase(side=96, n_steps=1), phase(side=96, name="scene", lr=1e30)])


def test_the_small_clip_is_the_one_that_is_shipped():
    shipped = json.loads((SHAPES_CLIP / CLIP_CONFIG).read_text())
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # ImageNet's
    assert shipped == {"model_cfg": contrastive.MODEL_CONFIG, "last_stride": 16, "preprocess_cfg": statistics}
    clip = build_small_clip()
    assert {"mean": list(clip.mean), "std": list(clip.std)} == statistics
    assert clip.level_channels == (64, 128, 256, 512)
    assert clip.last_stride == 16
    assert clip.levels(torch.zeros(1, 3, 160, 160))[3].shape[-2:] == (10, 10)
