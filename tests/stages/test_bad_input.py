"""What goes wrong outside the code ends in one line that says what to do, and leaves nothing in the next run's way."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from calls import places_in


@dataclass(frozen=True)
class Project:
    """A data set, its card, and runs that hold a trained Step-1 only."""

    root: Path
    call_ris: Callable[..., int]
    capsys: pytest.CaptureFixture[str]

    @property
    def images(self) -> Path:
        return self.root / "data" / "tiny" / "images"

    @property
    def annotations(self) -> Path:
        return self.root / "data" / "tiny" / "refer" / "shapes"

    def run(self, *arguments: object) -> tuple[int, str]:
        """Exit status and stderr of a command on the data set, or on another named in the arguments."""
        self.capsys.readouterr()
        status = self.call_ris(*arguments, **places_in(self.root), quiet=True)
        return status, self.capsys.readouterr().err

    def fails(self, *arguments: object) -> str:
        """The one line with which a command fails."""
        status, errors = self.run(*arguments)
        assert status == 1, errors
        assert errors.startswith("ris: ")
        assert "--debug" not in errors  # foreseen, not caught at the last moment
        assert errors.count("\n") == 1, errors
        return errors


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, write_tiny_card: Callable[..., Path], call_ris: Callable[..., int]
) -> Path:
    root = tmp_path_factory.mktemp("made")
    write_tiny_card(root, train=2, val=1)
    for command in (["data", "make-shapes"], ["train-step1"]):
        assert call_ris(*command, **places_in(root), quiet=True) == 0
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, call_ris: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Project:
    """A copy of it to spoil."""
    shutil.copytree(made, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project", call_ris, capsys)


@pytest.mark.parametrize("command", [["train-step1"], ["train-step2", "--oracle"], ["score"], ["data", "check"]])
def test_a_missing_data_set(project, tmp_path, command):
    line = project.fails(*command, "--dataset", "referit", "--data-root", tmp_path / "nowhere")
    for name in ("referit_query_train.json", "referit_bbox.json", "referit_imsize.json", "images"):
        assert str(tmp_path / "nowhere" / "referit" / name) in line
    assert "`ris data fetch referit`" in line
    assert "data/README.md" in line
    assert not (project.root / "runs" / "referit").exists()


def test_missing_generated_data(project):
    shutil.rmtree(project.images)
    line = project.fails("train-step1", "--force")
    assert str(project.images) in line
    assert "`ris data make-shapes`" in line


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


@pytest.mark.parametrize(
    ("command", "spoil"),
    [
        (["train-step1", "--force"], Path.unlink),
        (["train-step1", "--force", "--workers", 1], cut),  # as told by another process
        (["dump-responses", "--split", "train"], cut),
    ],
)
def test_a_missing_or_broken_image(project, command, spoil):
    image = min(project.images.glob("*.jpg"))
    whole = image.read_bytes()
    spoil(image)
    assert str(image) in project.fails(*command)
    image.write_bytes(whole)
    assert project.run(*command) == (0, "")
    # What was begun with the broken picture is of other data: it is not gone on with.
    assert not list(project.root.glob("runs/*/step1/*.partial"))


def test_bad_images_are_left_out_as_if_they_had_never_been_there(project):
    image = min(project.images.glob("*.jpg"))
    cut(image)
    assert str(image) in project.fails("train-step1", "--force")
    assert image.name in project.fails("data", "check", "--deep", "--write-exclude", "bad.txt")
    card = project.root / "tiny.toml"
    whole_card = card.read_text()
    card.write_text(whole_card.replace("[splits]", 'exclude = "bad.txt"\n[splits]', 1))
    assert project.run("train-step1")[0] == 0
    assert project.run("dump-responses", "--split", "train")[0] == 0
    step1 = project.root / "runs" / "tiny" / "step1" / "latest"
    weights = (step1 / "model.safetensors").read_bytes()

    (path,) = project.annotations.glob("refs*.p")
    refs = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([ref for ref in refs if ref["image_id"] != int(image.stem)]))
    card.write_text(whole_card)
    assert project.run("train-step1", "--runs", project.root / "others")[0] == 0
    assert (project.root / "others" / "tiny" / "step1" / "latest" / "model.safetensors").read_bytes() == weights


def test_a_ref_without_sentences(project):
    (path,) = project.annotations.glob("refs*.p")
    refs = pickle.loads(path.read_bytes())
    refs[0]["sentences"] = []
    path.write_bytes(pickle.dumps(refs))
    assert project.call_ris("train-step1", **places_in(project.root)) == 0
    assert "1 refs without sentences are left out" in project.capsys.readouterr().err


def test_a_box_outside_its_image(project):
    path = project.annotations / "instances.json"
    instances = json.loads(path.read_text())
    instances["annotations"][0]["bbox"] = [9000, 9000, 10, 10]
    path.write_text(json.dumps(instances))
    assert "lies outside the image" in project.fails("train-step1")


def test_a_box_outside_an_own_image(project):
    record = {"image": min(project.images.glob("*.jpg")).name, "ref": "x", "sentence": "a dog"}
    folder = project.root / "data" / "own"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text(json.dumps(record | {"box": [0, 0, 9000, 10]}))
    (project.root / "own.toml").write_text(
        'name = "own"\nformat = "pairs"\nannotations = "own"\nimages = "tiny/images"\n[splits]\ntrain = "any"\n'
    )
    line = project.fails("score", "--dataset", project.root / "own.toml")
    assert "pairs.jsonl:1: ref 'x', image" in line
    assert "lies outside the image" in line


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train-step1", "--dataset", "refcocco"], "did you mean 'refcoco'?"),
        (["train-step1", "--set", "epoch=2"], "did you mean 'epochs'?"),
        (["train-step1", "--set", "epochs=many"], "epochs = 'many': should be a valid integer"),
        (["train-step1", "--set", "clip=RN50-quikgelu"], "did you mean 'RN50-quickgelu'?"),
        (["dump-responses", "--split", "vall"], "no split 'vall'; known: train, val"),
        (["train-step1", "--force", "--device", "gpu"], "try --device cpu"),
        (["train-step1", "--config", "nowhere.toml"], "nowhere.toml: cannot read"),
        (["train-step1", "--config", "pyprojct.toml"], "; did you mean pyproject.toml?"),
        (
            ["train-step1", "--dataset", "ris_pipeline/cards/shapse.toml"],
            "did you mean ris_pipeline/cards/shapes.toml",
        ),
    ],
)
def test_unknown_names(project, arguments, hint):
    assert hint in project.fails(*arguments)


@pytest.mark.parametrize(
    "arguments", [["score", "--metric", "pointt"], ["train-step1", "--seed", "x"], ["trian-step1"]]
)
def test_wrong_usage(project, arguments):
    status, errors = project.run(*arguments)
    assert status == 2
    assert arguments[-2:][0] in errors


def test_a_checkpoint_that_is_not_what_was_trained(project):
    path = project.root / "runs" / "tiny" / "step1" / "latest" / "model.safetensors"
    whole = path.read_bytes()
    tensors = load_file(path)
    name = next(name for name, value in tensors.items() if value.ndim == 4)
    save_file(tensors | {name: tensors[name] + 1}, path)  # nothing but a checksum tells
    line = project.fails("dump-responses")
    assert "damaged: model.safetensors: not the bytes that were published; `ris status --repair`" in line
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged: model.safetensors" in project.fails("dump-responses")
    path.write_bytes(whole)
    assert project.run("dump-responses", "--split", "val") == (0, "")


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (["make-pseudolabels"], "ris dump-responses --split train"),
        (["train-step2"], "ris make-pseudolabels --refine"),
        (["score", "--stage", "step2"], "ris train-step2"),
    ],
)
def test_a_stage_before_its_turn(project, command, needed):
    assert f"; run: {needed} --dataset {project.root}/tiny.toml --data-root " in project.fails(*command)


def test_mistyped_folders(project):
    root = project.root
    assert f"; did you mean {root}/data?" in project.fails("train-step1", "--force", "--data-root", root / "dta")
    assert f"no finished step1 yet; did you mean {root}/runs?; run: " in project.fails(
        "dump-responses", "--runs", root / "rns"
    )


def test_prediction_before_any_training(project):
    image = min(project.images.glob("*.jpg"))
    line = project.fails("predict", image, "the star", "--runs", project.root / "none")
    assert "; run: ris train-step1 --dataset" in line


def test_runs_that_cannot_be_written(project):
    runs = project.root / "tiny.toml"  # a file, where a folder is needed
    line = project.fails("train-step1", "--runs", runs)
    assert f"{runs}/tiny/step1: cannot write there" in line
