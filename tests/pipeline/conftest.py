"""The whole chain on a tiny generated data set, made once for all tests of this folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from calls import places_in

CHAIN = (
    ["train-step1"],
    ["dump-responses"],
    ["make-pseudolabels", "--no-refine"],
    ["make-pseudolabels", "--refine"],
    ["train-step2"],
)

Ris = Callable[..., None]


@pytest.fixture(scope="session")
def chain() -> tuple[list[str], ...]:
    """The commands that make the artifacts, in their order."""
    return CHAIN


@pytest.fixture(scope="session")
def ris(call_ris: Callable[..., int]) -> Ris:
    """A function that runs one command in a project as the console script does; any error fails the test."""

    def run(root: Path, *arguments: object) -> None:
        assert call_ris(*arguments, **places_in(root), debug=True) == 0, arguments

    return run


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, write_tiny_card: Callable[..., Path], ris: Ris) -> Path:
    """A folder with a card, a data set and the artifacts of the chain, not scored; not to be spoilt."""
    root = tmp_path_factory.mktemp("project")
    write_tiny_card(root)
    ris(root, "data", "make-shapes")
    for command in CHAIN:
        ris(root, *command)
    return root


@pytest.fixture
def copy_of_project(project: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(project, tmp_path / "project", symlinks=True)
    return tmp_path / "project"


@pytest.fixture(scope="session")
def scored(project: Path, ris: Ris, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with its scores; tests may add to it."""
    root = tmp_path_factory.mktemp("scored") / "project"
    shutil.copytree(project, root, symlinks=True)
    ris(root, "score")
    return root
