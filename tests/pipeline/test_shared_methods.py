"""The compared methods, shared out among processes of torchrun: the same bytes, or the same training."""

import math
import shutil

import pytest

from ris_pipeline import dump_responses
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.layout import FILES
from ris_pipeline.methods import list_compared
from torchrun import digest_files, read_steps, run_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COMPARED = [method.name for method in list_compared()]
DRAWING = ("groupvit", "gbs")  # at random in the forward pass: groups, and what is blended how
# The compared methods, whose networks one process has trained: their maps, labels, scores and predictions.
ANSWERS = """
from pathlib import Path

from ris_pipeline.methods import list_compared

predict.BATCH_SIZE = 1
for name in [method.name for method in list_compared()]:
    dump_responses("tiny.toml", method=name, **places)
    make_pseudolabels("tiny.toml", refine=False, method=name, **places)
    predict.predict_files(
        open_context("tiny.toml", **places), [(Path("photos"), ["the red star"])], Path("out-RUNS") / name, method=name
    )
score("tiny.toml", **places)
"""
# What the compared methods train; the second time each is stopped at its third step, and goes on.
TRAININGS = """
import os
from contextlib import suppress

from ris_pipeline.errors import RisError
from ris_pipeline.methods import list_compared
from ris_pipeline.training import checkpoints

trained = [method.name for method in list_compared() if method.trained]
for name in trained:
    train_step1("tiny.toml", method=name, **places)

checkpoints.SECONDS_BETWEEN_CHECKPOINTS = 0
step_done, n_done = checkpoints.TrainingState.step_done, 0


def stop_at_the_third(self, **values):
    global n_done
    step_done(self, **values)
    n_done += 1
    if n_done == 3:
        raise RisError("stopped")


checkpoints.TrainingState.step_done = stop_at_the_third
places["runs"] = "broken-RUNS"
for name in trained if "RANK" in os.environ else []:
    n_done = 0
    with suppress(RisError):
        train_step1("tiny.toml", method=name, **places)
    assert n_done == 3
    train_step1("tiny.toml", method=name, **places)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_tiny_card, method_tables, call_ris):
    """A folder with a card of all methods, its data set and three photos; in teachers/ the maps that two learn from."""
    pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[methods]'")
    folder = tmp_path_factory.mktemp("ranks")
    card = write_tiny_card(folder, train=6, val=3)
    card.write_text(card.read_text() + method_tables)
    assert call_ris("data", "make-shapes", dataset=card, data_root=folder / "data") == 0
    places = {"data_root": folder / "data", "runs": folder / "teachers", "device": "cpu", "workers": 0, "quiet": True}
    for name in ("maskclip", "clip-es"):
        dump_responses(str(card), splits=["train"], method=name, **places)
    (folder / "photos").mkdir()
    for image in sorted((folder / "data/tiny/images").iterdir())[:3]:
        shutil.copy(image, folder / "photos")
    return folder


@pytest.fixture(scope="module")
def alone(root):
    """In trained-1/ the methods, trained by one process."""
    run_script(root, 1, TRAININGS, "teachers", "trained")
    return root / "trained-1"


def test_what_compared_methods_answer_is_the_same_for_two_processes(root, alone):
    for n in (1, 2):
        run_script(root, n, ANSWERS, alone.name, "methods")
    artifacts = digest_files(root / "methods-1")
    for stage, n_least in (("responses", 2 * len(COMPARED)), ("pseudolabels", len(COMPARED)), ("scores", 1)):
        assert sum(name.startswith(f"tiny/{stage}/") for name in artifacts) >= n_least
    assert digest_files(root / "methods-2") == artifacts
    predictions = digest_files(root / "out-methods-1")
    assert {name.split("/")[0] for name in predictions} == set(COMPARED)
    assert digest_files(root / "out-methods-2") == predictions


def test_the_training_of_every_method(root, alone):
    """Two processes, undisturbed and stopped once: the same bytes. And the losses of one process, but for rounding.

    Where a network draws at random in its forward pass, they are finite.
    """
    shutil.copytree(root / "teachers", root / "broken-trained-2", symlinks=True)
    run_script(root, 2, TRAININGS, "teachers", "trained")
    for name in (method.name for method in list_compared() if method.trained):
        alone, whole, broken = (
            find_latest(root / runs, "tiny", "step1", method=name)
            for runs in ("trained-1", "trained-2", "broken-trained-2")
        )
        assert alone.digest == whole.digest == broken.digest, name
        assert whole.manifest["host"]["ranks"] == 2
        assert (whole.path / FILES).read_bytes() == (broken.path / FILES).read_bytes(), name
        expected, found = read_steps(alone), read_steps(whole)
        assert len(expected) > 3
        for line, other in zip(expected, found, strict=True):
            if name in DRAWING:
                assert math.isfinite(other["loss"])
                assert other.keys() == line.keys()
            else:
                assert other == pytest.approx(line, rel=2e-3, abs=1e-4), name
        if name == "gbs":  # what it matches is not blended, and at first nothing random has been learnt
            assert found[0]["match"] == pytest.approx(expected[0]["match"], rel=1e-3)
