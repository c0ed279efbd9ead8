"""Every stage, shared out among processes of torchrun: for any number of them the same bytes, or the same training."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ris_pipeline import dump_responses, make_pseudolabels, train_step1
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.layout import IRNET_WEIGHTS, MANIFEST, TRAINING_LOG

pytestmark = pytest.mark.timeout(900)

CHECKOUT = Path(__file__).parents[2]
PLACES = """
from ris_pipeline import dump_responses, make_pseudolabels, score, train_step1, train_step2
from ris_pipeline.chain import predict
from ris_pipeline.chain.clip import pretrain_clip
from ris_pipeline.chain.context import open_context
from ris_pipeline.maps import store

store.BLOCK_ROWS = 8
places = {"data_root": "data", "runs": "RUNS", "device": "cpu", "workers": 0, "quiet": True}
"""
# The stages that are no training one after the other, in blocks of responses that are small enough for each process to
# have some, and batches of images too.
CHAIN = """
import os
from pathlib import Path

dump_responses("tiny.toml", **places)
make_pseudolabels("tiny.toml", refine=False, **places)
make_pseudolabels("tiny.toml", {"irnet": "irnet"}, refine=True, **places)
score("tiny.toml", **places)
predict.BATCH_SIZE = 2
wanted = [(Path("photos"), ["the red star", "a circle"]), (Path("photos/0.jpg"), ["the square"])]
found = predict.predict_files(open_context("tiny.toml", **places), wanted, Path("out-RUNS"))
is_first = os.environ.get("RANK", "0") == "0"
assert (len(found.records), len(found.failures)) == ((11, 1) if is_first else (0, 0)), found
"""
# What all of them together train: in each step the same, but for rounding.
TRAININGS = """
small = {"object_steps": 3, "object_batch": 4, "scene_steps": 2, "scene_batch": 4, "mask_steps": 1}
pretrain_clip("tiny.toml", small, **places)
train_step1("tiny.toml", {"epochs": 2}, **places)
train_step2("tiny.toml", **places)
make_pseudolabels("tiny.toml", {"irn_epochs": 3}, refine=True, **places)
train_step1("tiny.toml", method="amr", **places)
dump_responses("tiny.toml", splits=["train"], method="maskclip", **places)
train_step1("tiny.toml", method="maskclip-trained", **places)
dump_responses("tiny.toml", splits=["val"], method="amr", **places)
score("tiny.toml", splits=["val"], **places)
"""
METHODS = """
[config.amr]
clip = "{clip}"
clip_weights = "none"
backbone = "{clip}"
backbone_weights = "none"
input_size = 64
hidden = 8
epochs = 2
cam_epochs = 1
batch_size = 4

[config.maskclip]
clip = "{clip}"
clip_weights = "none"
input_size = 64

[config.maskclip-trained]
clip = "{clip}"
clip_weights = "none"
input_size = 64
hidden = 16
epochs = 1
batch_size = 6
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_tiny_card, tiny_clip, call_ris):
    """A folder with a card, its data set and photos; in start/ a trained Step-1, in labels/ its labels too.

    The IRNet behind them is in irnet/.
    """
    folder = tmp_path_factory.mktemp("ranks")
    card = write_tiny_card(folder, train=8, val=4)
    card.write_text(card.read_text() + METHODS.format(clip=tiny_clip))
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


def make_all(root, n, script=CHAIN, start="start", name="runs"):
    """Run a script by n processes on <name>-n/, from what is in `start`."""
    runs = f"{name}-{n}"
    shutil.copytree(root / start, root / runs, symlinks=True)
    path = root / f"{runs}.py"
    path.write_text((PLACES + script).replace("RUNS", runs))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, path], cwd=root, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone(root):
    """What one process makes, in runs-1/ and out-runs-1/."""
    make_all(root, 1)
    return digest_files(root / "runs-1"), digest_files(root / "out-runs-1")


def digest_files(runs):
    """{path: SHA-256} of all that the artifacts hold; a manifest tells of the time of day, predictions.json of RUNS."""
    return {
        str(path.relative_to(runs)): hashlib.sha256(
            path.read_bytes().replace(runs.name.removeprefix("out-").encode(), b"RUNS")
        ).hexdigest()
        for path in sorted(runs.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, "data.json")
    }


@pytest.mark.parametrize(
    "n", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.endurance)]
)
def test_any_number_of_processes_leaves_the_same_bytes(root, alone, n):
    make_all(root, n)
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
        make_all(root, n, TRAININGS, "labels", "trained")
    for dataset, stage, flags in (
        ("shapes", "clip", {}),
        ("tiny", "step1", {}),
        ("tiny", "step2", {"labels": "pseudo"}),
        ("tiny", "pseudolabels", {"refine": True}),
        ("tiny", "step1", {"method": "amr"}),
        ("tiny", "step1", {"method": "maskclip-trained"}),
    ):
        one, two = (find_latest(root / f"trained-{n}", dataset, stage, **flags) for n in (1, 2))
        assert one is not None
        assert two is not None
        assert one.digest == two.digest
        expected, found = (
            [json.loads(line) for line in (artifact.path / TRAINING_LOG).read_text().splitlines()]
            for artifact in (one, two)
        )
        assert len(expected) > 1
        for line, other in zip(expected, found, strict=True):
            assert other == pytest.approx(line, rel=2e-3, abs=1e-4), (stage, flags)
        if stage == "pseudolabels":
            weights, others = (load_file(artifact.path / IRNET_WEIGHTS) for artifact in (one, two))
            for name, value in weights.items():
                torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-5)
