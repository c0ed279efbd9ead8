"""What every method has to do, whatever it is: one test for all of METHODS, with networks that train in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calls import places_in
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.layout import WEIGHTS
from ris_pipeline.config import resolve
from ris_pipeline.datasets import Dataset
from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.maps.respond import Responder
from ris_pipeline.methods import METHODS, list_compared
from ris_pipeline.training import checkpoints
from ris_pipeline.training.batches import RefBatches
from tiny import METHOD_TABLES

PACKAGES = {"groupvit": "transformers"}  # of the extra: pip install -e '.[methods]'
COMPARED = [method.name for method in list_compared()]
TRAINED = [method.name for method in list_compared() if method.trained]
N_STEPS = 12  # of the test that a batch is learnt


@pytest.fixture(autouse=True)
def _extra(request: pytest.FixtureRequest) -> None:
    """Skip a method whose package is not installed."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if package := PACKAGES.get(str(parameters.get("name"))):
        pytest.importorskip(package, reason="needs the extra: pip install -e '.[methods]'")


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory,
    write_tiny_card: Callable[..., Path],
    method_tables: str,
    call_ris: Callable[..., int],
) -> Path:
    """A folder with a card that has a table for every method, and its data; tests may add to its runs."""
    root = tmp_path_factory.mktemp("methods")
    card = write_tiny_card(root, train=4, val=2)
    card.write_text(card.read_text() + method_tables)
    assert call_ris("data", "make-shapes", **places_in(root)) == 0
    return root


@pytest.fixture
def dataset(project: Path) -> Dataset:
    """The train split."""
    return load_dataset(load_card(project / "tiny.toml"), project / "data", "train")


def configure(project: Path, name: str) -> Any:
    return resolve(METHODS[name].config, load_card(project / "tiny.toml").config.get(METHODS[name].table, {}))


def load(project: Path, name: str) -> Responder:
    """A method's responder; of a trained one, before its training."""
    torch.manual_seed(0)
    return METHODS[name].load(configure(project, name), torch.device("cpu"))


@torch.no_grad()
def respond(responder: Responder, dataset: Dataset, ref_ids: list[int] | None) -> torch.Tensor:
    """The grids of three sentences about the first image of the data set."""
    image = load_image(dataset.images[dataset.refs[0].image_id])
    (encoded,) = responder.encode_images(to_pixels(image, responder.input_size)[None])
    texts = responder.encode_texts(["the red star", "left circle", "big striped ring at the top"])
    return responder.respond(encoded, texts, ref_ids)


def test_every_method_is_tested() -> None:
    assert list(METHOD_TABLES) == COMPARED


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ref_ids", [None, [1, 2, 2]], ids=["alone", "in-company"])
def test_grids_are_finite_and_the_same_twice(name, ref_ids, project, dataset):
    responder = load(project, name)
    grids = respond(responder, dataset, ref_ids)
    assert grids.shape == (3, *responder.grid_hw)
    assert grids.dtype == torch.float32
    assert torch.isfinite(grids).all()
    assert not torch.equal(grids[0], grids[1])  # the sentence matters
    assert torch.equal(grids, respond(responder, dataset, ref_ids))
    assert torch.equal(grids, respond(load(project, name), dataset, ref_ids))


@pytest.mark.parametrize("name", METHODS)
def test_a_sentence_alone_does_not_depend_on_those_beside_it(name, project, dataset):
    responder = load(project, name)
    image = to_pixels(load_image(dataset.images[dataset.refs[0].image_id]), responder.input_size)
    with torch.no_grad():
        (encoded,) = responder.encode_images(image[None])
        both = responder.respond(encoded, responder.encode_texts(["the red star", "left circle"]))
        alone = responder.respond(encoded, responder.encode_texts(["the red star"]))
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)


class LeftHalf:
    """Targets for methods that have a teacher: the left half of every picture."""

    def load(self, dataset: Any, ref: Any, expression: Any) -> np.ndarray:
        return np.repeat([[1, 0]], 2, axis=0).astype(np.uint8)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].trained])
def test_steps_on_a_batch_lower_its_loss(name, project, dataset):
    method, config = METHODS[name], configure(project, name)
    torch.manual_seed(0)
    task = method.implementation.build_task(method.implementation.build(config, None), config).train()
    plan = method.implementation.plan(dataset, config, 0)
    batch = RefBatches(plan, config.epochs, config.input_size, LeftHalf() if method.teacher else None)[0]
    optimizer = task.optimizer()
    losses = []
    for _ in range(N_STEPS):
        torch.manual_seed(0)  # what a method draws at random is the same in each step
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def train(name: str, root: Path, runs: Path, call_ris: Callable[..., int]) -> int:
    return call_ris("train-step1", "--method", name, **places_in(root) | {"runs": runs})


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_that_was_killed_ends_in_the_same_bytes(name, project, tmp_path, call_ris, monkeypatch):
    if teacher := METHODS[name].teacher:
        places = places_in(project) | {"runs": tmp_path / "whole"}
        assert call_ris("dump-responses", "--method", teacher, "--split", "train", **places) == 0
        (tmp_path / "broken").mkdir()
        (tmp_path / "whole" / "tiny").rename(tmp_path / "broken" / "tiny")
        assert call_ris("dump-responses", "--method", teacher, "--split", "train", **places) == 0
    assert train(name, project, tmp_path / "whole", call_ris) == 0

    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    step_done = checkpoints.TrainingState.step_done
    n_done = 0

    def die(self: Any, **values: float) -> None:
        nonlocal n_done
        n_done += 1
        step_done(self, **values)
        if n_done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.TrainingState, "step_done", die)
        assert train(name, project, tmp_path / "broken", call_ris) != 0
    assert train(name, project, tmp_path / "broken", call_ris) == 0

    whole, broken = (find_latest(tmp_path / runs, "tiny", "step1", method=name) for runs in ("whole", "broken"))
    assert whole is not None
    assert broken is not None
    assert (whole.path / WEIGHTS).read_bytes() == (broken.path / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", COMPARED)
def test_it_is_dumped_and_scored(name, project, tmp_path, call_ris, capsys):
    places = places_in(project) | {"runs": tmp_path / "runs"}
    if METHODS[name].trained:
        if teacher := METHODS[name].teacher:
            assert call_ris("dump-responses", "--method", teacher, "--split", "train", **places) == 0
        assert call_ris("train-step1", "--method", name, **places) == 0
    assert call_ris("dump-responses", "--method", name, "--split", "val", **places) == 0
    capsys.readouterr()
    assert call_ris("score", "--split", "val", "--json", **places) == 0
    scored = {row["scored"]: row["metrics"] for row in json.loads(capsys.readouterr().out)}
    assert {"chance", name} <= scored.keys()
    assert 0 <= scored[name]["pointit"]["value"] <= 100
