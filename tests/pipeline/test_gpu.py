"""Each stage on a CUDA device beside the same stage on the CPU: from the same artifacts, the same within rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from calls import places_in
from ris_pipeline.artifacts.layout import METRICS, label_path, store_path
from ris_pipeline.datasets.io.labels import load_label
from ris_pipeline.maps.store import ResponseStore

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
Run = Callable[..., Path]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Let float32 be float32: cuDNN multiplies in TF32 by default, which keeps three digits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def run(copy_of_project: Path, call_ris: Callable[..., int]) -> Run:
    """A function that makes one artifact on the device, in place of the CPU's, and returns its folder."""

    def run(artifact: str, *words: object) -> Path:
        options = {**places_in(copy_of_project), "device": DEVICE}
        assert call_ris(*words, "--force", "--debug", **options) == 0, words
        return copy_of_project / "runs" / "tiny" / artifact

    return run


def read_losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / METRICS).read_text().splitlines()]


@pytest.mark.parametrize(
    ("artifact", "command"), [("step1/latest", "train-step1"), ("step2/latest-pseudo", "train-step2")]
)
def test_a_training_takes_the_same_steps(project, run, artifact, command):
    before = read_losses(project / "runs" / "tiny" / artifact)
    after = read_losses(run(artifact, command))
    assert len(after) == len(before) > 1
    assert after[0] == pytest.approx(before[0], rel=1e-4)  # before any update: the forward pass alone
    assert after == pytest.approx(before, rel=0.02)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("artifact", "command"), [("step1", "train-step1"), ("step2", "train-step2")])
def test_mixed_precision_stays_near(project, run, artifact, command, precision):
    label = {"step1": "latest", "step2": "latest-pseudo"}[artifact]
    before = read_losses(project / "runs" / "tiny" / artifact / label)
    after = read_losses(run(f"{artifact}/{label}", command, "--precision", precision))
    assert after[0] == pytest.approx(before[0], rel=0.05)
    assert np.isfinite(after).all()


def test_responses_are_the_same(project, run):
    folder = "responses/latest-train"
    before, after = (
        ResponseStore.open(store_path(path, "train"))
        for path in (project / "runs" / "tiny" / folder, run(folder, "dump-responses", "--split", "train"))
    )
    expected = before.read_grids(range(len(before)))
    np.testing.assert_allclose(after.read_grids(range(len(after))), expected, atol=1e-4 * np.ptp(expected))
    np.testing.assert_allclose(after.prms_score, before.prms_score, atol=1e-3)


@pytest.mark.parametrize("flag", ["no-refine", "refine"])
def test_pseudo_labels_are_nearly_the_same(project, run, flag):
    """IRNet is trained on the device, so that its edges, and a few pixels, are others."""
    folder = f"pseudolabels/latest-{flag}"
    before, after = project / "runs" / "tiny" / folder, run(folder, "make-pseudolabels", f"--{flag}")
    ref_ids = [int(path.stem) for path in before.glob("[0-9]*.png")]
    labels = [(load_label(label_path(before, i)), load_label(label_path(after, i))) for i in ref_ids]
    assert len(labels) > 10
    assert np.mean([(old == new).mean() for old, new in labels]) > (0.999 if flag == "no-refine" else 0.95)


def test_scores_of_step2_are_nearly_the_same(scored, run):
    folder = "scores/latest-step2-val"
    assert (scored / "runs" / "tiny" / folder / "scores.json").is_file()
    before, after = (
        json.loads((path / "scores.json").read_text())["metrics"]["miou"]["value"]
        for path in (scored / "runs" / "tiny" / folder, run(folder, "score", "--stage", "step2", "--split", "val"))
    )
    assert after == pytest.approx(before, abs=1)


def test_segmenting(project):
    from ris_pipeline import Segmenter

    image = min((project / "data" / "tiny" / "images").glob("*.jpg"))
    for stage in ("step1/latest", "step2/latest-pseudo"):
        there, here = (
            Segmenter.load(project / "runs" / "tiny" / stage, device=device)(image, "the red square")
            for device in (DEVICE, "cpu")
        )
        assert (there.mask == here.mask).mean() > 0.99
