"""Every command that the documents show is run: on a tiny data set, with a reader's own paths put in."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest

from calls import find_command, places_in

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:\w+/)*\w+\.py)`")
OF_OTHERS = {"demo.py", "validate.py"}  # files of others: TRIS
INLINE = re.compile(r"`(ris [^`]+)`")
NOT_RUN = {  # only looked at; what runs it instead
    "cost": "tests/test_cost.py",
    "import-checkpoint": "tests/released",
    "pretrain-clip": "tests/training/test_contrastive.py",
    "demo": "tests/stages/test_demo.py",
}


def read_blocks() -> list[tuple[str, str]]:
    """(document, command) of each line of each block of shell commands."""
    found = []
    for document in DOCUMENTS:
        for block in BLOCK.findall(document.read_text(encoding="utf-8")):
            lines = [line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
            found += [(document.name, line) for line in lines if line and not line.startswith("#")]
    return found


def read_inline() -> list[tuple[str, str]]:
    """(document, command) of each command of ris inside a sentence."""
    return [
        (document.name, " ".join(line.split()))
        for document in DOCUMENTS
        for line in INLINE.findall(BLOCK.sub("", document.read_text(encoding="utf-8")))
    ]


def check_options(line: str) -> None:
    """Fails where a command of ris, or one of its options, does not exist."""
    words = shlex.split(line.replace("…", ""))
    words = words[next(i for i, word in enumerate(words) if Path(word).name == "ris") + 1 :]
    command = find_command(words)
    assert not hasattr(command, "commands") or words[0].startswith("-"), line
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"} <= known, line


def test_there_are_documents_to_look_at():
    assert len(read_blocks()) > 15
    assert len(read_inline()) > 15
    with pytest.raises(AssertionError):
        check_options("ris train-step3")
    with pytest.raises(AssertionError):
        check_options("ris score --metrics miou")


@pytest.mark.parametrize(("document", "line"), sorted(set(read_inline())))
def test_a_command_inside_a_sentence_exists(document, line):
    check_options(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_files_that_a_document_names_are_there(document):
    paths = set(PATH.findall(document.read_text(encoding="utf-8"))) - OF_OTHERS
    folders = (ROOT, ROOT / "ris_pipeline", ROOT / "tests")
    here = {path.name for folder in folders for path in folder.rglob("*.py")}
    missing = {path for path in paths if not any((folder / path).is_file() for folder in folders)}
    assert {path for path in missing if "/" in path or path not in here} == set()


def test_the_tree_has_all_rooms():
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("```\nris_pipeline/")[2]
    named = set(re.findall(r"^  (\w+)/ ", tree.partition("```")[0], re.MULTILINE))
    assert named - {"cards"} == {path.parent.name for path in ROOT.glob("ris_pipeline/*/__init__.py")}


@pytest.fixture(scope="module")
def reader(project: Path, tmp_path_factory: pytest.TempPathFactory, ris: Callable[..., None]) -> Path:
    """A copy of the tiny project, scored, where a reader types."""
    root = tmp_path_factory.mktemp("reader") / "project"
    shutil.copytree(project, root, symlinks=True)
    ris(root, "score")
    return root


def put_paths_in(words: list[str], root: Path) -> Iterator[str]:
    """The words with the reader's image, folders and data set for those of the document."""
    images = sorted((root / "data" / "tiny" / "images").glob("*.jpg"))
    own = {"IMAGE": images[0], "IMAGES": images[0].parent, "DIR": root / "out", "FILE": root / "file.html"}
    is_dataset = False
    for word in words:
        if is_dataset:
            yield str(root / "tiny.toml")
        elif word == "/path/to/data":
            yield str(root / "data")
        else:
            yield str(own.get(word, word))
        is_dataset = word == "--dataset"


@pytest.mark.parametrize(("document", "line"), dict.fromkeys(read_blocks()))
def test_a_command_of_a_block_runs(document, line, reader, call_ris, monkeypatch):
    words = shlex.split(line.removeprefix("time "))
    if words[0] == "torchrun":  # on one process here; tests/pipeline/test_torchrun.py has several
        words = ["ris", *words[words.index("stages.cli") + 1 :], "--dry-run"]
    if words[0] == "ris":
        check_options(line if line.startswith("ris") else " ".join(words))
        if words[1] in NOT_RUN or words[1:4] == ["data", "fetch", "refcoco-hf"]:  # asks the hub: test_newcomer.py
            return
        if words[1:3] == ["figure", "sweep"]:  # what it draws: tests/pipeline/test_experiment.py
            return
        words = list(put_paths_in(words[1:], reader))
        if words[0] == "experiment":  # what it makes: as well
            words.append("--dry-run")
        if words[:2] == ["data", "fetch"]:  # what it downloads, from a server here: tests/stages/test_data.py
            words.append("--print")
        monkeypatch.chdir(reader)
        assert call_ris(*words, **places_in(reader), debug=True) == 0
    elif words[0] == "make":
        printed = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert printed.returncode == 0, printed.stderr
        for command in re.split(r"\n|;|&&", printed.stdout):
            if "/ris " in command:
                check_options(command)
    elif words[0] == "pytest":
        assert [word for word in words[1:] if word.startswith("tests/") and not (ROOT / word).exists()] == []
    else:
        assert words[0] in (".", "cd", "git", "pip"), f"{document}: nothing runs this line: {line}"


def test_the_python_of_the_readme_runs(reader, monkeypatch):
    image = next((reader / "data" / "tiny" / "images").glob("*.jpg"))
    blocks = PYTHON.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sum("train_step1(" in block for block in blocks) == 1
    monkeypatch.chdir(reader)
    shown = []
    monkeypatch.setattr(PIL.Image.Image, "show", lambda picture: shown.append(picture))
    names = {}
    for block in blocks:
        if "onnxruntime" in block:  # run by tests/test_export.py
            continue
        own = block.replace("IMAGE.jpg", str(image)).replace('"shapes"', '"tiny.toml"')
        own = own.replace("runs/shapes", "runs/tiny")
        exec(compile(own, "README.md", "exec"), names)
    assert len(shown) == 1
    assert len(names["many"]) == 2
    assert names["step2"].name == "step2/pseudo"


def test_make_best_makes_two_rounds_and_trains_the_second_longer_on_shapes():
    def list_commands(dataset):
        command = ["make", "-n", "best", f"DATASET={dataset}"]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        lines = [line.partition("ris ")[2].partition(" --dataset ")[0] for line in out.splitlines()]
        return [line.split() for line in lines if line.startswith(("make-pseudolabels", "train-step2"))]

    rounds = [
        ["make-pseudolabels", "--refine", "--preset", "best"],
        ["train-step2"],
        ["make-pseudolabels", "--round", "2", "--preset", "best"],
        ["train-step2", "--round", "2"],
    ]
    assert list_commands("refcoco") == rounds
    assert list_commands("shapes+") == [*rounds[:-1], [*rounds[-1], "--set", "epochs=12"]]
