"""The training loop: exact resume with the real networks, schedule and errors with a network of two numbers."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.process import signals as stops
from ris_pipeline.process.failures import explain_failure
from ris_pipeline.process.ranks import ALONE
from ris_pipeline.training import checkpoints, loop
from ris_pipeline.training.batches import RefBatches, TrueMasks
from ris_pipeline.training.checkpoints import TrainingState
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import Task, train
from ris_pipeline.training.tasks import Step1Task, Step2Task
from tiny import TINY, draw_epoch, make_noise

LEFT_HALF = {"size": [40, 40], "counts": [0, 800, 800]}
CONFIG = Step1Config(epochs=2, lr=1e-2, backbone_lr=1e-3)


@pytest.fixture
def dataset(tmp_path):
    return make_noise(tmp_path, LEFT_HALF)


@pytest.fixture
def plan(dataset):
    return Plan(dataset, batch_size=2, refs_per_image=2, n_negatives=2, seed=4)  # 3 steps an epoch


def step1_task(seed):
    torch.manual_seed(seed)
    clip = Clip.from_config(TINY)
    torch.manual_seed(100)  # the frozen CLIP comes from elsewhere, the same each time
    return Step1Task(Step1(clip, clip, hidden=8), Clip.from_config(TINY), CONFIG)


def step2_task(seed):
    torch.manual_seed(seed)
    clip = Clip.from_config(TINY)
    network = Step2(clip, clip, widths=(4, 4, 4, 4))
    network.freeze_levels(2)
    return Step2Task(network, Step2Config())


def run(task, plan, folder, epochs=2, report=lambda step, losses: None, targets=None, **changes):
    folder.mkdir(exist_ok=True)
    settings = {"device": torch.device("cpu"), "precision": "fp32", "workers": 0, "ranks": ALONE, "seed": plan.seed}
    return train(task, RefBatches(plan, epochs, 64, targets), folder, report=report, **settings | changes)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("build", "targets"), [(step1_task, None), (step2_task, TrueMasks())])
@pytest.mark.parametrize("broken_at", [1, 4])
def test_an_interrupted_run_ends_in_the_same_weights(build, targets, broken_at, plan, tmp_path, monkeypatch):
    losses = []
    assert run(build(0), plan, tmp_path / "calm", report=lambda step, got: losses.append(got), targets=targets) == 6
    expected = load_file(tmp_path / "calm" / loop.WEIGHTS)

    def break_off(step, got):
        if step == broken_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        run(build(0), plan, broken, report=break_off, targets=targets)
    assert names_in(broken) == [checkpoints.TRAINING_LOG, checkpoints.RESUME]

    again = {}
    # From other initial values: all that counts is in the checkpoint.
    assert run(build(1), plan, broken, report=again.__setitem__, targets=targets) == 6
    assert again == {step: losses[step] for step in range(broken_at, 6)}
    assert names_in(broken) == [checkpoints.TRAINING_LOG, loop.WEIGHTS, checkpoints.RESUME]
    assert (broken / checkpoints.TRAINING_LOG).read_bytes() == (
        tmp_path / "calm" / checkpoints.TRAINING_LOG
    ).read_bytes()
    found = load_file(broken / loop.WEIGHTS)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_checkpoint_waits_for_its_time(plan, tmp_path):
    def break_off(step, got):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(step1_task(0), plan, tmp_path / "run", report=break_off)
    assert names_in(tmp_path / "run") == [checkpoints.TRAINING_LOG]  # not two minutes old


def test_the_file_holds_the_trained_network_and_nothing_else(plan, tmp_path):
    task = step1_task(0)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    run(task, plan, tmp_path / "run")
    found = load_file(tmp_path / "run" / loop.WEIGHTS)
    assert set(found) == set(before)
    assert not any(name.startswith("aux") for name in found)
    for name, value in task.network.state_dict().items():
        assert torch.equal(found[name], value), name
    assert not torch.equal(found["vis_project.weight"], before["vis_project.weight"])
    assert not torch.equal(found["clip.model.visual.conv1.weight"], before["clip.model.visual.conv1.weight"])


def test_the_frozen_clip_of_the_calibration_loss_stays_as_it_is(plan, tmp_path):
    task = step1_task(0)
    before = {name: value.clone() for name, value in task.aux.state_dict().items()}
    run(task, plan, tmp_path / "run")
    assert all(torch.equal(value, before[name]) for name, value in task.aux.state_dict().items())


def test_frozen_levels_stay_as_they_are(plan, tmp_path):
    task = step2_task(0)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    run(task, plan, tmp_path / "run", targets=TrueMasks())
    visual = "clip.model.visual."
    same = {name for name, value in task.network.state_dict().items() if torch.equal(value, before[name])}
    for name in before:
        part = name.removeprefix(visual).split(".")[0]
        if name.startswith(visual) and part.startswith(("conv", "bn", "layer1")):
            assert name in same, name
    assert f"{visual}layer2.0.conv1.weight" not in same
    assert f"{visual}layer2.0.bn1.running_mean" not in same


class TwoNumbers(nn.Module):
    """A network whose loss is the sum of its two parameters: a gradient of 1 at every step."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = (nn.Parameter(torch.tensor(value)) for value in (2.0, 3.0))


class Sum(Task):
    poly_power = 0.9

    def __init__(self, bad_step=None, weight_decay=0.0):
        super().__init__()
        self.network, self.bad_step, self.step = TwoNumbers(), bad_step, 0
        self.weight_decay = weight_decay

    def optimizer(self):
        groups = [
            {"params": [self.network.backbone], "lr": 0.01},
            {"params": [self.network.head], "lr": 0.1},
        ]
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay)

    def forward(self, batch):
        backbone, head = self.network.backbone, self.network.head
        loss = backbone + head
        if self.step == self.bad_step:
            loss = loss * torch.inf
        self.step += 1
        return {"loss": loss, "backbone": backbone.detach().clone(), "head": head.detach().clone()}


def test_the_learning_rate_falls_by_the_polynomial(plan, tmp_path):
    """Adam's step for a gradient that is always 1 is the learning rate itself; AdamW's decay comes before it."""
    seen = {}
    run(task := Sum(weight_decay=0.5), plan, tmp_path / "run", report=seen.__setitem__)
    logged = [json.loads(line) for line in (tmp_path / "run" / checkpoints.TRAINING_LOG).read_text().splitlines()]
    assert [line["lr"] for line in logged] == pytest.approx([0.1 * (1 - step / 6) ** 0.9 for step in range(6)])
    for name, value, lr in (("backbone", 2.0, 0.01), ("head", 3.0, 0.1)):
        for step in range(6):
            assert seen[step][name] == pytest.approx(value, abs=1e-5)
            now = lr * (1 - step / 6) ** 0.9
            value = value * (1 - now * 0.5) - now
        assert task.network.get_parameter(name).item() == pytest.approx(value, abs=1e-5)


def test_every_step_is_reported_with_its_losses(plan, tmp_path):
    seen = []
    run(step1_task(0), plan, tmp_path / "run", report=lambda step, losses: seen.append((step, losses)))
    assert [step for step, _ in seen] == list(range(6))
    for _, losses in seen:
        assert set(losses) == {"loss", "cls", "pos", "neg"}
        assert losses["loss"] == pytest.approx(losses["pos"] + 2 * losses["neg"] + 5 * losses["cls"], rel=1e-5)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_refs(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    drawn = [plan.dataset.refs[draw.ref].ref_id for draw in draw_epoch(plan, 1)[1]]  # step 4
    with pytest.raises(RisError) as caught:
        run(Sum(bad_step=4), plan, tmp_path / "run")
    assert str(caught.value) == f"step 4: the loss is not finite; refs of the batch: {drawn}; lower lr"
    # The last good state stays, and what would come next fails again at the same step.
    assert names_in(tmp_path / "run") == [checkpoints.TRAINING_LOG, checkpoints.RESUME]
    assert TrainingState(tmp_path / "run", {}).load() == 4
    with pytest.raises(RisError, match=r"step 4: the loss is not finite"):
        run(Sum(bad_step=0), plan, tmp_path / "run")
    assert TrainingState(tmp_path / "run", {}).load() == 4


class Drawing(Sum):
    """A loss that depends on torch's random numbers, as stochastic depth does, and overflows while scaled too much."""

    def forward(self, batch):
        losses = super().forward(batch)
        backbone = self.network.backbone
        return {**losses, "loss": losses["loss"] + torch.rand(()) * backbone + 2e34 * (backbone - backbone.detach())}


@pytest.mark.parametrize("workers", [0, 1])
def test_random_numbers_and_gradient_scale_survive_a_stop(plan, tmp_path, workers):
    """fp16 finds its scale in the first steps, and stopped by SIGTERM in the midst of that it goes on with it."""
    calm, losses = tmp_path / "calm", {}
    run(task := Drawing(), plan, calm, report=losses.__setitem__, precision="fp16")
    assert losses[1]["head"] == losses[2]["head"] == 3.0  # scales of 65536 and 32768 were too much: no step taken
    assert losses[3]["head"] < 3.0

    def stop(step, got):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    broken = tmp_path / "broken"
    with pytest.raises(stops.Stopped), stops.watch_signals():
        run(Drawing(), plan, broken, report=stop, precision="fp16", workers=workers)
    assert names_in(broken) == [checkpoints.TRAINING_LOG, checkpoints.RESUME]
    torch.manual_seed(99)
    again = {}
    run(resumed := Drawing(), plan, broken, report=again.__setitem__, precision="fp16", workers=workers)
    assert again == {step: losses[step] for step in range(2, 6)}
    for found, expected in zip(resumed.network.parameters(), task.network.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert (broken / checkpoints.TRAINING_LOG).read_bytes() == (calm / checkpoints.TRAINING_LOG).read_bytes()


def test_what_a_killed_run_had_finished_is_not_trained_again_and_not_trusted(plan, tmp_path):
    run(Sum(), plan, tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in (loop.WEIGHTS, checkpoints.TRAINING_LOG)}
    for name, data in before.items():
        (tmp_path / "run" / name).write_bytes(data[:-1] + b"x")
    seen = {}
    assert run(Sum(), plan, tmp_path / "run", report=seen.__setitem__) == 6
    assert not seen
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before


def test_a_killed_reader_is_told_in_one_line(plan, tmp_path):
    def kill_reader(step, got):
        for process in multiprocessing.active_children():
            process.kill()
            process.join()

    with pytest.raises(RuntimeError) as caught:
        run(Sum(), plan, tmp_path / "run", report=kill_reader, workers=1)
    line = explain_failure(caught.value)
    assert line is not None
    assert line.startswith("a worker process was killed")


def test_one_ref_alone_can_be_learned_from(dataset, tmp_path):
    """No other object anywhere: nothing to be unlike, and the losses are still finite."""
    alone = replace(dataset, refs=dataset.refs[:1])
    plan = Plan(alone, batch_size=2, refs_per_image=1, n_negatives=3, seed=0)
    seen = {}
    run(step1_task(0), plan, tmp_path / "run", report=seen.__setitem__)
    assert seen[0]["neg"] == 0
    assert np.isfinite(seen[1]["loss"])


def closeness(task, target=2.45):
    """A validation that is best where the head, which falls from 3.0, is nearest to the target: after two epochs."""
    return lambda: {"miou": -abs(task.network.head.item() - target), "pointit": task.network.head.item()}


@pytest.mark.parametrize(("select", "best_epoch"), [("last", 3), ("miou", 1), ("pointit", 0)])
def test_the_weights_of_the_selected_epoch_count(select, best_epoch, plan, tmp_path):
    task, heads = Sum(), []

    def validate():
        assert not task.training
        heads.append(task.network.head.item())
        return closeness(task)()

    seen = {}
    run(task, plan, tmp_path, 4, report=seen.__setitem__, validate=validate, select=select)
    assert load_file(tmp_path / loop.WEIGHTS)["head"].item() == heads[best_epoch]
    assert len(set(heads)) == 4
    logged = [json.loads(line) for line in (tmp_path / checkpoints.TRAINING_LOG).read_text().splitlines()]
    of_epochs = {line["step"]: line["val_pointit"] for line in logged if "val_pointit" in line}
    assert of_epochs == dict(zip((2, 5, 8, 11), heads, strict=True))
    assert [seen[step]["val_pointit"] for step in of_epochs] == heads
    assert task.training is False


@pytest.mark.parametrize(
    ("where", "broken_at"),
    [*(("before the log", step) for step in range(12)), *(("in the validation", step) for step in (2, 5, 8, 11))],
)
def test_the_best_epoch_is_found_again_after_a_break(where, broken_at, plan, tmp_path, monkeypatch):
    """Broken at every step of four epochs, the best of which is the second."""
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)

    def break_off(step):
        if step == broken_at:
            raise KeyboardInterrupt

    def validate_and_break(task):
        n_validated = 0

        def validate():
            nonlocal n_validated
            n_validated += 1
            break_off(3 * n_validated - 1)
            return closeness(task)()

        return validate

    run(task := Sum(), plan, tmp_path / "calm", 4, validate=closeness(task), select="miou")
    broken, task = tmp_path / "broken", Sum()
    if where == "in the validation":
        break_in = {"validate": validate_and_break(task)}
    else:
        break_in = {"validate": closeness(task), "report": lambda step, got: break_off(step)}
    with pytest.raises(KeyboardInterrupt):
        run(task, plan, broken, 4, select="miou", **break_in)
    run(task := Sum(), plan, broken, 4, validate=closeness(task), select="miou")
    for name in (loop.WEIGHTS, checkpoints.TRAINING_LOG):
        assert (broken / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


def test_a_killed_training_keeps_the_best_epoch(plan, tmp_path):
    """By SIGKILL after the third epoch of four: the best, the second, is in the checkpoint alone."""
    run(task := Sum(), plan, tmp_path / "calm", 4, validate=closeness(task), select="miou")
    pid = os.fork()
    if pid == 0:
        checkpoints.SECONDS_BETWEEN_CHECKPOINTS = 0
        task = Sum()
        run(
            task, plan, tmp_path / "killed", 4, validate=closeness(task), select="miou",
            report=lambda step, got: os.kill(os.getpid(), signal.SIGKILL) if step == 9 else None,
        )  # fmt: skip
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert names_in(tmp_path / "killed") == [checkpoints.TRAINING_LOG, checkpoints.RESUME]
    run(task := Sum(), plan, tmp_path / "killed", 4, validate=closeness(task), select="miou")
    found, expected = (load_file(tmp_path / name / loop.WEIGHTS) for name in ("killed", "calm"))
    assert found == expected


def test_a_real_network_learns_the_same_beside_its_validation(plan, tmp_path):
    """Scored by the mean of a map in evaluation mode, after every epoch; the weights are those without validation."""
    run(step1_task(0), plan, tmp_path / "plain")
    task = step1_task(0)
    noise = torch.randn(2, 3, 64, 64)

    def validate():
        torch.rand(3)  # a validation may draw random numbers
        with torch.inference_mode():
            return {"miou": task.network(noise, task.network.clip.tokenize(["a", "b"])).mean().item()}

    run(task, plan, tmp_path / "validated", validate=validate)
    plain, validated = (load_file(tmp_path / name / loop.WEIGHTS) for name in ("plain", "validated"))
    assert all(torch.equal(plain[name], validated[name]) for name in plain)
