"""Every stage, shared out among processes of torchrun: for any number of them the same bytes, or the same training."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ris_pipeline import dump_responses, make_pseudolabels, train_step1
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.layout import IRNET_WEIGHTS
from torchrun import digest_files, read_steps, run_script

pytestmark = pytest.mark.timeout(900)

# The stages that are no training one after the other, in blocks of responses that are small enough for each process to
# have some, and batches of images too.
CHAIN = """
import os
from pathlib import Path

dump_responses("tiny.toml", **places)
make_pseudolabels("tiny.toml", refine=False, **places)
make_pseudolabels("tiny.toml", {"irnet": "irnet"}, refine=True, **places)
make_pseudolabels("tiny.toml", {"irnet": "irnet", "crf": True, "pieces": True}, refine=True, **places)
score("tiny.toml", **places)
predict.BATCH_SIZE = 2
wanted = [(Path("photos"), ["the red star", "a circle"]), (Path("photos/0.jpg"), ["the square"])]
found = predict.predict_files(open_context("tiny.toml", **places), wanted, Path("out-RUNS"))
is_first = os.environ.get("RANK", "0") == "0"
assert len(found.records) == (11 if is_first else 0), found
assert (found.failure or "").startswith("1 of 7 images could not be read" if is_first else ""), found
"""
# What all of them together train: in each step the same, but for rounding.
TRAININGS = """
small = {"object_steps": 3, "object_batch": 4, "scene_steps": 2, "scene_batch": 4, "mask_steps": 1}
pretrain_clip("tiny.toml", small, **places)
train_step1("tiny.toml", {"epochs": 2}, **places)
train_step2("tiny.toml", **places)
make_pseudolabels("tiny.toml", {"irn_epochs": 3}, refine=True, **places)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_tiny_card, call_ris):
    """A folder with a card, its data set and photos; in start/ a trained Step-1, in labels/ its labels too.

    The IRNet behind them is in irnet/.
    """
    folder = tmp_path_factory.mktemp("ranks")
    card = write_tiny_card(folder, train=8, val=4)
    assert call_ris("data", "make-shapes", dataset=card, data_root=folder / "data") == 0
    places = {"data_root": folder / "data", "runs": folder / "start", "device": "cpu", "workers": 0, "quiet": True}
    train_step1(str(card), **places)
    shutil.copytree(folder / "start", folder / "labels", symlinks=True)
    places["runs"] = folder / "labels"
    dump_responses(str(card), splits=["train"], **places)
    labels = make_pseudolabels(str(card), refine=True, **places)
    (folder / "irnet").mkdir()
    shutil.copy(labels.path / IRNET_WEIGHTS, folder / "irnet")
    photos = folder / "photos"
    photos.mkdir()
    for number, image in enumerate(sorted((folder / "data/tiny/images").iterdir())[:5]):
        shutil.copy(image, photos / f"{number}{image.suffix}")
    (photos / "1.webp").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def alone(root):
    """What one process makes, in runs-1/ and out-runs-1/."""
    run_script(root, 1, CHAIN, "start", "runs")
    return digest_files(root / "runs-1"), digest_files(root / "out-runs-1")


@pytest.mark.parametrize(
    "n", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.endurance)]
)
def test_any_number_of_processes_leaves_the_same_bytes(root, alone, n):
    run_script(root, n, CHAIN, "start", "runs")
    artifacts, predictions = alone
    assert {name.split("/")[1] for name in artifacts} >= {"responses", "pseudolabels", "scores"}
    assert len(predictions) == 3 * 11 + 1
    assert digest_files(root / f"runs-{n}") == artifacts
    assert digest_files(root / f"out-runs-{n}") == predictions
    links = {path.name for path in (root / f"runs-{n}").rglob("latest*")}
    assert links == {path.name for path in (root / "runs-1").rglob("latest*")}


@pytest.mark.slow
def test_every_training_is_that_of_one_process(root):
    """But for rounding: the losses of each step, and the weights of IRNet, which no Adam drives apart."""
    for n in (1, 2):
        run_script(root, n, TRAININGS, "labels", "trained")
    for dataset, stage, flags in (
        ("shapes", "clip", {}),
        ("tiny", "step1", {}),
        ("tiny", "step2", {"labels": "pseudo"}),
        ("tiny", "pseudolabels", {"refine": True}),
    ):
        one, two = (find_latest(root / f"trained-{n}", dataset, stage, **flags) for n in (1, 2))
        assert one is not None
        assert two is not None
        assert one.digest == two.digest
        expected, found = read_steps(one), read_steps(two)
        assert len(expected) > 1
        for line, other in zip(expected, found, strict=True):
            assert other == pytest.approx(line, rel=2e-3, abs=1e-4), (stage, flags)
        if stage == "pseudolabels":
            weights, others = (load_file(artifact.path / IRNET_WEIGHTS) for artifact in (one, two))
            for name, value in weights.items():
                torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-5)
