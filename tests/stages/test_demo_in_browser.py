"""The demo in a headless Chromium: the command, with the CLIP that is shipped, by mouse, keyboard and axe-core."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs the extra: pip install -e '.[browser]'"
)

pytestmark = pytest.mark.browser

FIRST, SECOND = "the red circle", "the blue square on the right <b>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `ris demo` says that it is; interrupted at the end, it ends well."""
    runs = tmp_path_factory.mktemp("demo") / "runs"
    command = [sys.executable, "-m", "stages.cli", "demo", "--port", "0", "--device", "cpu", "--runs", str(runs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120×80 pixels: a red circle on the left, a blue square on the right."""
    image = PIL.Image.new("RGB", (120, 80), (120, 120, 110))
    draw = PIL.ImageDraw.Draw(image)
    draw.ellipse((10, 20, 50, 60), (220, 30, 30))
    draw.rectangle((75, 25, 110, 60), (30, 60, 220))
    path = tmp_path_factory.mktemp("picture") / "two shapes.png"
    image.save(path)
    return path


@pytest.fixture
def open_demo(new_page, address) -> Callable[..., Any]:
    """A function (view) that opens the page, which may ask for nothing elsewhere."""

    def open_demo(view: str = "desktop, light") -> Any:
        page = new_page(lambda url: url.startswith(("data:", "blob:", f"{address}/")), view)
        page.goto(address)
        return page

    return open_demo


def segment(page, sentence: str) -> None:
    """Write a sentence into the page and wait until it is listed."""
    n_before = page.locator("#sentences li").count()
    page.get_by_label("Sentence", exact=True).fill(sentence)
    page.get_by_role("button", name="Segment").click()
    page.locator("#sentences li").nth(n_before).wait_for()


def choose(page, path: Path) -> None:
    page.locator("#file").set_input_files(path)


def decode(url: str) -> np.ndarray:
    """The pixels of a PNG's data URL."""
    return np.array(PIL.Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def pixels(canvas) -> np.ndarray:
    """RGB of a canvas, int (H, W, 3)."""
    return decode(canvas.evaluate("canvas => canvas.toDataURL()"))[..., :3].astype(int)


def mask_of(address: str, path: Path, sentence: str) -> np.ndarray:
    """The mask bool (H, W) that the program gives whoever asks for it."""
    url = f"{address}/segment?{urllib.parse.urlencode({'sentence': sentence})}"
    request = urllib.request.Request(url, path.read_bytes(), {"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return decode(json.load(answer)["results"][0]["mask"])[..., 1] == 255


def wait_for_message(page, text: str) -> None:
    page.get_by_role("status").filter(has_text=text).wait_for()


def pressed(page) -> list[str]:
    buttons = page.locator("#sentences button")
    return buttons.evaluate_all("all => all.map((one) => one.getAttribute('aria-pressed'))")


def test_masks_and_maps_of_two_sentences_are_shown_and_compared(open_demo, address, picture):
    page = open_demo()
    choose(page, picture)
    canvas = page.locator("#canvas")
    canvas.wait_for()
    plain = np.array(PIL.Image.open(picture)).astype(int)
    np.testing.assert_array_equal(pixels(canvas), plain)
    for sentence in (FIRST, SECOND):
        segment(page, sentence)
    first, second = (mask_of(address, picture, sentence) for sentence in (FIRST, SECOND))
    assert page.locator("#sentences .sentence").all_text_contents() == [FIRST, SECOND]
    assert first.any()
    assert (first != second).any()

    def changed(element) -> np.ndarray:
        return np.abs(pixels(element) - plain).sum(axis=2) > 0

    np.testing.assert_array_equal(changed(canvas), first | second)
    # In the list: of each sentence the mask, then the map, which colours every pixel.
    small = page.locator("#sentences canvas").all()
    assert len(small) == 4
    for mask, of_mask, of_map in ((first, *small[:2]), (second, *small[2:])):
        np.testing.assert_array_equal(changed(of_mask), mask)
        assert changed(of_map).mean() > 0.9
        assert of_map.bounding_box()["width"] > 50
    # A click hides a mask, another shows it again.
    page.get_by_role("button", name=SECOND).click()
    assert pressed(page) == ["true", "false"]
    np.testing.assert_array_equal(changed(canvas), first)
    assert canvas.get_attribute("aria-label") == f"The image with the masks of: {FIRST}"
    page.get_by_role("button", name=SECOND).click()
    np.testing.assert_array_equal(changed(canvas), first | second)
    # The map on the image is that of the sentence that was clicked.
    page.get_by_label("map of one sentence").check()
    for sentence, of_map, states in ((FIRST, small[1], ["true", "false"]), (SECOND, small[3], ["false", "true"])):
        page.get_by_role("button", name=sentence).click()
        np.testing.assert_array_equal(pixels(canvas), pixels(of_map))
        assert pressed(page) == states


def test_a_photograph_is_shown_as_it_is_segmented(open_demo, picture, tmp_path):
    """Turned by EXIF, as the program turns it."""
    image = PIL.Image.open(picture)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    page = open_demo()
    choose(page, tmp_path / "turned.png")
    page.locator("#canvas").wait_for()
    assert pixels(page.locator("#canvas")).shape == (120, 80, 3)


def test_another_image_is_searched_for_the_same_sentences(open_demo, picture, tmp_path):
    page = open_demo()
    choose(page, picture)
    segment(page, FIRST)
    PIL.Image.open(picture).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT).resize((90, 60)).save(tmp_path / "b.jpg")
    with page.expect_response(re.compile("/segment")):
        choose(page, tmp_path / "b.jpg")
    wait_for_message(page, "Done")
    assert page.locator("#sentences .sentence").all_text_contents() == [FIRST]
    assert pixels(page.locator("#canvas")).shape == (60, 90, 3)


def test_an_image_can_be_dropped(open_demo, picture):
    page = open_demo()
    data = base64.b64encode(picture.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """data => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
          transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          return transfer;
        }""",
        data,
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    wait_for_message(page, "Now write what to segment.")
    assert pixels(page.locator("#canvas")).shape == (80, 120, 3)


def test_what_cannot_be_segmented_is_told(open_demo, picture, tmp_path):
    page = open_demo()
    button = page.get_by_role("button", name="Segment")
    button.click()
    wait_for_message(page, "Choose an image first.")
    (tmp_path / "notes.txt").write_text("no image")
    choose(page, tmp_path / "notes.txt")
    wait_for_message(page, "notes.txt: not an image that this browser can read. Choose a PNG, JPEG or WebP.")
    choose(page, picture)
    wait_for_message(page, "Now write what to segment.")
    page.get_by_label("Sentence", exact=True).fill("  ")
    button.click()
    wait_for_message(page, "Write what to segment.")
    assert page.locator("#sentences li").count() == 0


def test_the_keyboard_is_enough(open_demo, picture):
    page = open_demo()
    choose(page, picture)
    segment(page, FIRST)
    segment(page, SECOND)
    page.locator("#file").focus()
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                  const one = document.activeElement;
                  const label = one.id || one.value || (one.querySelector(".sentence") ?? one).textContent;
                  return [label, getComputedStyle(one).outlineStyle];
                }"""
            )
        )
    assert reached == [[name, "solid"] for name in ("sentence", "Segment", "mask", FIRST, SECOND)]
    page.keyboard.press("Space")
    assert pressed(page) == ["true", "false"]
    page.locator("input[value=mask]").focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("map of one sentence").is_checked()
    page.get_by_label("Sentence", exact=True).fill("the star")
    page.keyboard.press("Enter")
    page.locator("#sentences li").nth(2).wait_for()


def test_axe_finds_nothing_and_all_fits(open_demo, picture, view):
    page = open_demo(view)
    for _ in range(2):  # before an image is chosen, and with a sentence
        results = axe.Axe().run(page, options={"resultTypes": ["violations", "incomplete", "passes"]})
        assert results.violations_count == 0, results.generate_report()
        assert "color-contrast" in {rule["id"] for rule in results.response["passes"]}
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        choose(page, picture)
        segment(page, FIRST)
