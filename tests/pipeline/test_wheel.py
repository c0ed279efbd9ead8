"""The wheel alone, in an empty folder: cards, weights, templates and the demo's page travel with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from calls import add_options

CHECKOUT = Path(__file__).parents[2]
BUILT_FROM = ("ris_pipeline", "stages", "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel is installed, without what it depends on."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for name in BUILT_FROM:  # a copy: building leaves files beside the source, and would find those of an earlier build
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", root, source], check=True)
    (wheel,) = root.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")  # no compiled part: any later Python and torch will do
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", root / "site", wheel], check=True)
    return root / "site"


@pytest.fixture(scope="module")
def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user types; the tests below follow each other in it."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def run(site: Path, environment: dict[str, str], folder: Path) -> Callable[..., str]:
    """A function that runs one installed command in the folder and returns what it prints."""

    def run(*words: object) -> str:
        command = [sys.executable, site / "bin" / "ris", *map(str, words)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_cards_are_listed_in_an_empty_folder(run, folder):
    cards = {line.split()[0] for line in run("data", "list").splitlines()}
    assert {"shapes", "shapes+", "shapesg", "refcoco", "refcocog-umd", "referit", "pairs"} <= cards
    run("data", "make-shapes", "--dry-run")
    assert "Table 5" in run("table", "5")
    assert list(folder.iterdir()) == []


def test_predict_before_any_training_the_chain_the_report_and_the_demo(
    run, folder, write_tiny_card, chain, site, environment
):
    (folder / "data").mkdir()
    write_tiny_card(folder / "data")  # a card in ./data is found beside the shipped ones
    run("data", "make-shapes", "--dataset", "tiny")
    image = min((folder / "data" / "tiny" / "images").glob("*.jpg"))
    run("predict", image, "the red square", "--out", "before", "--device", "cpu")
    assert len(list((folder / "before").glob("*.png"))) == 3

    for words in (*chain, ["score"], ["report", "--out", "report.html"]):
        run(*add_options(words, dataset="tiny", workers=0, device="cpu"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("page.css", "page.js"):
        assert (CHECKOUT / "ris_pipeline" / "report" / name).read_text(encoding="utf-8")[:80] in page

    code = "from ris_pipeline import Segmenter as S; import sys; print(S.load(sys.argv[1])(*sys.argv[2:]).mask.shape)"
    command = [sys.executable, "-c", code, "runs/tiny/step2/latest-pseudo", image, "the red star"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(")

    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    command = [sys.executable, str(site / "bin" / "ris"), "demo", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            for name in ("", "page.js", "page.css"):
                with urllib.request.urlopen(f"{address}/{name}") as answer:
                    assert answer.status == 200
        finally:
            server.terminate()


def test_what_is_imported_is_the_wheel(site, environment, folder):
    code = "import ris_pipeline, stages; print(ris_pipeline.__file__, stages.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert all(Path(path).is_relative_to(site) for path in done.stdout.split())
