"""Each stage on a CUDA device beside the same stage on the CPU: from the same artifacts, the same within rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from calls import places_in
from ris_pipeline.artifacts.layout import TRAINING_LOG, label_path, store_path
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
def little_memory() -> Iterator[None]:
    """Let the process take no more than what it has and a few MB of the device's memory."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 4e6) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def run(copy_of_project: Path, call_ris: Callable[..., int]) -> Run:
    """A function that makes one artifact on the device, in place of the CPU's, and returns its folder."""

    def run(artifact: str, *words: object) -> Path:
        options = {**places_in(copy_of_project), "device": DEVICE}
        assert call_ris(*words, "--force", "--debug", **options) == 0, words
        return copy_of_project / "runs" / "tiny" / artifact

    return run


def read_losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / TRAINING_LOG).read_text().splitlines()]


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


@pytest.mark.parametrize(
    ("artifact", "command"), [("step1/latest", "train-step1"), ("step2/latest-pseudo", "train-step2")]
)
@pytest.mark.timeout(1200)  # the compiler takes minutes
@pytest.mark.filterwarnings("ignore")  # the compiler looks at what warns when it is looked at
def test_a_compiled_training_takes_the_same_steps(project, run, artifact, command):
    before = read_losses(project / "runs" / "tiny" / artifact)
    assert read_losses(run(artifact, command, "--compile")) == pytest.approx(before, rel=0.02)


def test_tf32_stays_near(project, run):
    before = read_losses(project / "runs" / "tiny" / "step1" / "latest")
    try:
        after = read_losses(run("step1/latest", "train-step1", "--precision", "tf32"))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert after[0] == pytest.approx(before[0], rel=0.02)


@pytest.mark.parametrize(("first", "then"), [("cpu", DEVICE), (DEVICE, "cpu")])
@pytest.mark.parametrize("command", ["train-step1", "train-step2"])
def test_a_training_goes_on_on_another_device(project, copy_of_project, call_ris, monkeypatch, command, first, then):
    """Broken off behind its second step; the losses are those of the whole run on the CPU."""
    from ris_pipeline.training import checkpoints

    options = {**places_in(copy_of_project), "debug": True}
    stage, label = {"train-step1": ("step1", "latest"), "train-step2": ("step2", "latest-pseudo")}[command]
    step_done = checkpoints.TrainingState.step_done

    def break_off(state: checkpoints.TrainingState, **values: float) -> None:
        step_done(state, **values)
        if state.n_done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
        patch.setattr(checkpoints.TrainingState, "step_done", break_off)
        assert call_ris(command, "--force", **options | {"device": first}) == 130
    assert call_ris(command, **options | {"device": then}) == 0
    before = read_losses(project / "runs" / "tiny" / stage / label)
    assert read_losses(copy_of_project / "runs" / "tiny" / stage / label) == pytest.approx(before, rel=0.02)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("command", ["train-step1", "dump-responses", "train-step2"])
def test_out_of_memory_is_one_line(copy_of_project, call_ris, capsys, command):
    assert call_ris(command, "--force", **places_in(copy_of_project) | {"device": DEVICE}) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ris: ")]
    assert "out of memory" in line
    assert "; lower " in line


def test_the_crf_is_the_processors():
    from ris_pipeline.refine import crf, mean_field

    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 246, (12, 16, 3)), np.ones((30, 30, 1))).astype(np.uint8)
    image += rng.integers(0, 10, image.shape, np.uint8)
    labels = (np.kron(rng.random((5, 9, 12)), np.ones((1, 40, 40))) > 0.6).astype(np.uint8)
    unary = crf.odds_of_labels(labels)
    tensors = (torch.from_numpy(array).to(DEVICE) for array in (image, unary))
    found = mean_field.log_odds(*tensors, crf.IRNET).cpu().numpy()
    expected = crf.DenseCrf(image, crf.IRNET).log_odds(unary)
    probability, expected_probability = (1 / (1 + np.exp(-odds)) for odds in (found, expected))
    np.testing.assert_allclose(probability, expected_probability, atol=1e-4)


def test_the_walk_is_the_processors():
    from ris_pipeline.refine import affinity, walk

    rng = np.random.default_rng(0)
    maps, boundary = rng.random((3, 120, 160), np.float32), rng.random((120, 160), np.float32) ** 4
    tensors = (torch.from_numpy(array).to(DEVICE) for array in (maps, boundary))
    found = walk.propagate(*tensors, beta=10, n_steps=256, radius=5).cpu().numpy()
    expected = affinity.propagate(maps, boundary, beta=10, n_steps=256, radius=5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("crf", ["false", "true"])
def test_labels_of_a_given_irnet_are_the_same(project, copy_of_project, call_ris, crf):
    """Of one IRNet the labels are the same but for pixels at a threshold, the dense CRF behind the walk included."""
    given = project / "runs" / "tiny" / "pseudolabels" / "latest-refine"
    folder = copy_of_project / "runs" / "tiny" / "pseudolabels" / "latest-refine"
    words = ("make-pseudolabels", "--refine", "--force", "--set", f"irnet={given}", "--set", f"crf={crf}")
    found = []
    for device in ("cpu", DEVICE):
        assert call_ris(*words, **places_in(copy_of_project) | {"device": device, "debug": True}) == 0
        found.append({path.name: load_label(path) for path in folder.glob("[0-9]*.png")})
    before, after = found
    assert before.keys() == after.keys()
    assert len(before) > 10
    assert np.mean([(before[name] == after[name]).mean() for name in before]) > 0.999


def test_boundaries_of_several_images_are_those_of_each():
    from ris_pipeline.config import PseudolabelConfig
    from ris_pipeline.networks.load import irnet_from_config

    torch.manual_seed(0)
    net = irnet_from_config(PseudolabelConfig(irn_weights=None)).eval()
    pixels = torch.randn(3, 3, 96, 128)
    expected = [net.boundary_displacement(image[None]) for image in pixels]
    boundary, displacement = (found.cpu() for found in net.to(DEVICE).boundary_displacement(pixels.to(DEVICE)))
    torch.testing.assert_close(boundary, torch.cat([one for one, _ in expected]), rtol=1e-4, atol=1e-4)
    scale = displacement.abs().max().item()
    torch.testing.assert_close(displacement, torch.cat([one for _, one in expected]), rtol=1e-4, atol=1e-4 * scale)


def test_cleaned_masks_score_nearly_the_same(copy_of_project, call_ris, capsys):
    found = []
    for device in ("cpu", DEVICE):
        capsys.readouterr()
        words = ("score", "--split", "val", "--crf", "--force", "--json")
        assert call_ris(*words, **places_in(copy_of_project) | {"device": device, "debug": True}) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["metrics"]["miou"]["value"])
    assert found[1] == pytest.approx(found[0], abs=0.5)


@pytest.mark.parametrize(("precision", "points"), [("fp32", 1), ("bf16", 3), ("fp16", 3)])
def test_scores_of_step2_are_nearly_the_same(scored, run, precision, points):
    folder = "scores/latest-step2-val"
    assert (scored / "runs" / "tiny" / folder / "scores.json").is_file()
    words = ("score", "--stage", "step2", "--split", "val", "--precision", precision)
    before, after = (
        json.loads((path / "scores.json").read_text())["metrics"]["miou"]["value"]
        for path in (scored / "runs" / "tiny" / folder, run(folder, *words))
    )
    assert after == pytest.approx(before, abs=points)


def test_segmenting(project):
    from ris_pipeline import Segmenter

    image = min((project / "data" / "tiny" / "images").glob("*.jpg"))
    for stage in ("step1/latest", "step2/latest-pseudo"):
        there, here = (
            Segmenter.load(project / "runs" / "tiny" / stage, device=device)(image, "the red square")
            for device in (DEVICE, "cpu")
        )
        assert (there.mask == here.mask).mean() > 0.99
