"""Settings of the whole test run, and what the tests of the commands share."""

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A limit on the time of an example would measure the machine.
settings.register_profile("ris", deadline=None)
settings.load_profile("ris")

# Before torch is imported anywhere: the tests' arrays are too small to gain from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
# Every stage at its smallest; the heading says which data set.
TINY_STAGES = """
[config.step1]
clip = "{clip}"
clip_weights = "none"
aux_clip = "{clip}"
aux_weights = "none"
input_size = 64
hidden = 16
epochs = 1
batch_size = 6
refs_per_image = 3

[config.responses]
batch_size = 8

[config.pseudolabels]
irn_backbone = "{clip}"
irn_weights = "none"
irn_images = 4
irn_epochs = 1
irn_batch = 4
irn_crop = 64
radius = 4
log2_steps = 4

[config.step2]
clip = "{clip}"
clip_weights = "none"
input_size = 64
epochs = 1
batch_size = 6
refs_per_image = 3

[config.scores]
bootstrap = 50
"""
TINY_SHAPES = """
name = "tiny"
format = "refer"
partition = "shapes"
annotations = "tiny/refer/shapes"
images = "tiny/images"

[splits]
train = "any"
val = "any"

[generate]
variant = "shapes"
seed = 0
n_images = {{ train = {train}, val = {val} }}
"""
PAIRS_CARD = """
name = "tiny"
format = "pairs"
annotations = "tiny"
images = "tiny/images"
[splits]
train = 2
val = 1
[config.step1]
epochs = 2
"""
PAIRS = [
    {"image": "a.png", "ref": "dog", "sentence": "the dog", "split": "train"},
    {"image": "a.png", "ref": "dog", "sentence": "dog on the left", "split": "train"},
    {"image": "b.png", "ref": "cat", "sentence": "the cat", "split": "val"},
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
VIEWS = {
    "desktop, light": (DESKTOP, "light"),
    "desktop, dark": (DESKTOP, "dark"),
    "phone, light": (PHONE, "light"),
    "phone, dark": (PHONE, "dark"),
}


@pytest.fixture(scope="session")
def tiny_stages(tiny_clip: Path) -> str:
    """The end of a card: all stages with networks that train in seconds."""
    return TINY_STAGES.format(clip=tiny_clip)


@pytest.fixture(scope="session")
def write_tiny_card(tiny_stages: str) -> Callable[..., Path]:
    """A function (folder, train=10, val=4) that writes folder/tiny.toml: generated shapes, so many images a split."""

    def write(folder: Path, train: int = 10, val: int = 4) -> Path:
        card = folder / "tiny.toml"
        card.write_text(TINY_SHAPES.format(train=train, val=val) + tiny_stages)
        return card

    return write


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP of random values, for the configuration's `clip`."""
    import torch

    from ris_pipeline.networks.clip import Clip
    from ris_pipeline.networks.weights.clip_weights import save_compact

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP}))
    save_compact(Clip.from_config(TINY_CLIP), folder / "model.safetensors", range(0, 49408, 97))
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ViT-CLIP of random values, for the configuration's `clip`; `tiny_clip` is a ResNet."""
    from ris_pipeline.networks.weights.clip_weights import save_compact
    from tiny import build_random

    folder = tmp_path_factory.mktemp("vit")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_VIT}))
    save_compact(build_random(TINY_VIT), folder / "model.safetensors", range(0, 49408, 97))
    return folder


@pytest.fixture(scope="session")
def method_tables(tiny_clip: Path, tiny_vit: Path) -> str:
    """A card's tables of all compared methods, with networks that train in seconds."""
    from tiny import METHOD_TABLES

    tables = "".join(f"[config.{name}]\n{table}" for name, table in METHOD_TABLES.items())
    return tables.format(clip=tiny_clip, vit=tiny_vit)


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    """Options for a data set of two images and three sentences, in the smallest format."""
    import numpy as np
    import PIL.Image

    from calls import Options

    images = tmp_path / "data" / "tiny" / "images"
    images.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(images / name)
    text = "".join(json.dumps(line) + "\n" for line in PAIRS)
    (tmp_path / "data" / "tiny" / "pairs.jsonl").write_text(text)
    (tmp_path / "tiny.toml").write_text(PAIRS_CARD)
    return Options(dataset=str(tmp_path / "tiny.toml"), data_root=tmp_path / "data", runs=tmp_path / "runs")


@pytest.fixture(scope="session")
def call_ris() -> Callable[..., int]:
    """A function that runs one command as the console script does and returns its exit status.

    It takes the command's words, and by keyword the options to add where the command has them: data_root=…, quiet=True.
    """
    from calls import add_options
    from stages.cli import main

    def call(*arguments: object, **options: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["ris", *add_options(arguments, **options)])
            with pytest.raises(SystemExit) as stop:
                main()
        # Whatever a command ends with, nothing that it has started goes on.
        deadline = time.monotonic() + 10
        while children := multiprocessing.active_children():
            assert time.monotonic() < deadline, (arguments, children)
            time.sleep(0.02)
        return int(stop.value.code or 0)

    return call


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of the system, driven by Playwright; skips where one of them is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra: pip install -e '.[browser]'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(BROWSER_FLAGS), headless=True)
        yield browser
        browser.close()


@pytest.fixture(params=VIEWS)
def view(request: pytest.FixtureRequest) -> str:
    """Each of VIEWS: the size of the window, and whether light or dark is asked for."""
    return str(request.param)


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function (is_own, view) that gives an empty page in a new window, as one of VIEWS.

    The test fails if any of them writes to the console or asks for a URL that is_own(url) denies.
    """
    faults: list[str] = []
    contexts = []

    def new_page(is_own: Callable[[str], bool], view: str = "desktop, light") -> Any:
        size, scheme = VIEWS[view]
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce"))
        page = contexts[-1].new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if is_own(request.url) else faults.append(request.url))
        return page

    yield new_page
    for context in contexts:
        context.close()
    assert faults == []
