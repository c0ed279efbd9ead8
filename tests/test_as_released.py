"""The released code's way, as `as_released` has it, and ours give the same: what makes their times comparable."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import as_released
from ris_pipeline.bench import Shape, make_dataset
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.methods import tris
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.scoring.evaluate import evaluate_network
from ris_pipeline.training.tasks import Step1Task, Step2Task
from tiny import TINY, build_random

CPU = torch.device("cpu")


@pytest.fixture
def step1():
    clip = build_random(TINY)
    network = Step1(clip, clip, hidden=12).eval()
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture
def step2():
    clip = build_random(TINY)
    torch.manual_seed(5)  # some of its logits are positive and some not
    return Step2(clip, clip, widths=(4, 6, 8, 10)).eval()


@pytest.fixture
def batch():
    return as_released.make_batch(3, 64, CPU)


@pytest.fixture
def dataset(tmp_path):
    """Three images of two refs with three or four sentences each."""
    return make_dataset(tmp_path, Shape(3, 6, 21, 0, (48, 64)), 3)


def gradients_of(network):
    # Weights that no loss reaches have none, or zeros.
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: grad for name, grad in found.items() if grad.any()}


def learn(task, compute_loss):
    task.zero_grad(set_to_none=True)
    loss = compute_loss()
    loss.backward()
    return loss.item(), gradients_of(task.network)


def make_task(network):
    if isinstance(network, Step1):
        return Step1Task(network, build_random(TINY).double(), Step1Config(hidden=12)).train()
    return Step2Task(network, Step2Config()).train()


@pytest.mark.parametrize("stage", ["step1", "step2"])
def test_a_training_step_has_the_same_loss_and_gradients(request, batch, stage):
    network = request.getfixturevalue(stage).double()
    batch = replace(batch, pixels=batch.pixels.double())
    released = make_task(copy.deepcopy(network))
    loss = (as_released.StepOne if stage == "step1" else as_released.StepTwo)(released, batch)
    expected, gradients = learn(released, loss)
    task = make_task(network)
    found, ours = learn(task, as_released.learn_ours(task, batch, "fp32"))
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(ours) > 20
    assert ours.keys() == gradients.keys()
    # Of a bias in front of a normalisation nothing but rounding is left.
    rounding = 1e-6 * max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=rounding, msg=name)


def test_a_dump_has_the_same_scores_and_choices(step1, dataset, tmp_path):
    aux = build_random(TINY)
    config = Step1Config(hidden=12, input_size=64)
    expected = as_released.dump_as_released(step1, aux, 64, dataset, tmp_path)
    store = as_released.dump_ours(step1, aux, config, dataset, tmp_path / "responses.zarr")
    assert len(expected) == 6
    for ref_id, scores in expected.items():
        found = store.prms_score[store.rows_of_ref(ref_id)]
        np.testing.assert_allclose(found, scores, rtol=1e-4)
        assert store.selected(ref_id) == np.argmax(scores)
        assert np.load(tmp_path / f"{ref_id}.npy").shape == (48, 64)


def test_a_score_has_the_same_outcomes(step2, dataset):
    expected = list(as_released.score_as_released(step2, 64, dataset))
    outcomes = evaluate_network(dataset, tris.Step2Responder(step2, 64), 2)
    found = [(o.intersection, o.union, o.point_it, o.point_m) for o in outcomes]
    assert len(found) == 21
    np.testing.assert_allclose(found, expected, atol=2)  # pixels at 0 but for rounding
    assert [outcome[2:] for outcome in found] == [outcome[2:] for outcome in expected]
    assert all(24 * 32 < union < 48 * 64 for _, union, *_ in found)  # neither empty nor full


def test_a_walk_has_the_same_maps():
    rng = np.random.default_rng(0)
    boundary, maps = (torch.from_numpy(rng.random(shape, np.float32)) for shape in ((9, 12), (2, 9, 12)))
    expected = as_released.walk_as_released(maps, boundary).numpy()
    np.testing.assert_allclose(as_released.walk_ours(maps, boundary), expected, rtol=1e-4, atol=1e-6)


def test_the_table_is_kept_as_it_is_printed(capsys, tmp_path):
    file = tmp_path / "result.json"
    table = as_released.Table(CPU, 4, 2, file)
    as_released.measure_walk(table, [(6, 8)])
    table.add("by hand", 30.0, 4.0, 1500.0)
    *rows, last = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == ["random walk 6×8, 1 maps", "random walk 6×8, 3 maps"]
    assert min(row["ratio"] for row in rows) > 0
    assert last == {"name": "by hand", "released_ms": 30.0, "ours_ms": 4.0, "ratio": 7.5, "first_ms": 1500.0}
    assert capsys.readouterr().out.splitlines()[-1].split()[-7:] == [
        "30.00",
        "4.00",
        "7.50",
        "first",
        "step",
        "1.5",
        "s",
    ]


def test_the_median_leaves_the_first_call_out(monkeypatch):
    times = iter([0, 9, 10, 11, 20, 23, 30, 32])  # calls of 9, 1, 3 and 2 seconds
    monkeypatch.setattr(as_released.time, "process_time", lambda: next(times))
    assert as_released.Table(CPU, 4, 3, None).time(lambda: None) == (2000, 9000)
