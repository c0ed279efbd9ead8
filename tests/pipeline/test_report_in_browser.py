"""The report in a headless Chromium: as a reader meets it, from a file, by mouse, by keyboard and by axe-core."""

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs the extra: pip install -e '.[browser]'"
)

pytestmark = pytest.mark.browser

SAMPLES = 18
EVIL = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
IOU = "card => JSON.parse(card.dataset.scores).step1.iou"


@pytest.fixture(scope="module")
def report(scored: Path, ris, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a data set whose first sentences are hostile."""
    root = tmp_path_factory.mktemp("browser") / "project"
    shutil.copytree(scored, root, symlinks=True)
    path = root / "data/tiny/refer/shapes/refs(shapes).p"
    refs = pickle.loads(path.read_bytes())
    for ref in refs:
        ref["sentences"][0]["sent"] = EVIL
    path.write_bytes(pickle.dumps(refs, protocol=2))
    ris(root, "report", "--samples", SAMPLES, "--out", root / "report.html")
    return root / "report.html"


@pytest.fixture
def open_page(new_page, report) -> Callable[..., Any]:
    """A function (view) that opens the report, which may ask for nothing else."""

    def open_page(view: str = "desktop, light") -> Any:
        page = new_page(lambda url: url.startswith("data:") or url == report.as_uri(), view)
        page.goto(report.as_uri())
        return page

    return open_page


def control(page, name: str):
    """A field of the filters."""
    return page.locator(f"#filters [name={name}]")


def cards(page, expression: str) -> list:
    """The value of a JavaScript function for each card that is shown."""
    return page.locator("#cards > article").evaluate_all(f"cards => cards.map({expression})")


def test_foreign_text_is_read_and_not_run(open_page):
    page = open_page()
    assert page.title() == "ris report: tiny"
    assert EVIL in page.locator("#cards h3").all_text_contents()


def test_all_pictures_load(open_page):
    page = open_page()
    while page.locator("#more").is_visible():
        page.locator("#more").click()
    assert page.locator("#cards > article").count() == SAMPLES
    loaded = page.evaluate(
        """async () => {
          const photos = [...document.querySelectorAll("article")].map((card) => {
            const image = new Image();
            image.src = card.style.getPropertyValue("--photo").slice(4, -1);
            return image;
          });
          const images = [...document.querySelectorAll("main img"), ...photos];
          await Promise.all(images.map((image) => image.decode()));
          return images.map((image) => image.naturalWidth);
        }"""
    )
    assert len(loaded) > 5 * SAMPLES
    assert min(loaded) > 0


def test_the_gallery_filters_by_split_text_place_words_and_length(open_page):
    page = open_page()
    control(page, "split").select_option("val")
    assert set(cards(page, "card => card.dataset.split")) == {"val"}
    control(page, "split").select_option("")
    control(page, "place").select_option("with")
    assert set(cards(page, "card => card.dataset.place")) == {"1"}
    page.get_by_role("button", name="Show all").click()
    control(page, "length").select_option("1–3 words")
    assert set(cards(page, "card => card.dataset.length")) <= {"1–3 words"}
    page.get_by_role("button", name="Show all").click()
    control(page, "text").fill("SCRIPT>")
    page.wait_for_function("document.getElementById('count').textContent.match(/^\\d+ sentences?$/)")
    texts = page.locator("#cards h3").all_text_contents()
    assert texts
    assert set(texts) == {EVIL}
    control(page, "text").fill("no such words")
    assert page.locator("#count").text_content() == "No sentence passes all filters; “Show all” lifts them."


def test_right_and_wrong_are_by_the_chosen_stage_and_metric(open_page):
    page = open_page()
    hits = [card["step1"]["pointm"] for card in all_scores(page)]
    control(page, "row").select_option("step1")
    control(page, "metric").select_option("pointm")
    counts = {}
    for verdict, expected in (("right", 1), ("wrong", 0)):
        control(page, "verdict").select_option(verdict)
        assert set(cards(page, "card => JSON.parse(card.dataset.scores).step1.pointm")) <= {expected}
        count = page.locator("#count").text_content()
        counts[verdict] = 0 if count.startswith("No sentence") else int(re.match(r"\d+", count).group())
    assert counts == {"right": hits.count(1), "wrong": hits.count(0)}


def all_scores(page) -> list[dict]:
    while page.locator("#more").is_visible():
        page.locator("#more").click()
    return cards(page, "card => JSON.parse(card.dataset.scores)")


def test_the_best_the_worst_and_the_most_changed_come_first(open_page):
    page = open_page()
    control(page, "order").select_option("best")
    best = cards(page, IOU)
    control(page, "order").select_option("worst")
    worst = cards(page, IOU)
    control(page, "order").select_option("changed")
    changes = cards(page, "card => Math.abs(Number(card.dataset.change))")
    assert len(set(best)) > 3
    assert best == sorted(best, reverse=True)
    assert worst == sorted(worst)
    assert changes == sorted(changes, reverse=True)


def test_pictures_are_shown_larger(open_page, view):
    page = open_page(view)
    frame = page.locator(".card .frame").first
    small = frame.bounding_box()["width"]
    control(page, "size").select_option("large")
    assert frame.bounding_box()["width"] > 1.5 * small
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_reaches_everything(open_page):
    page = open_page()
    # What can be operated, and what scrolls, has to come up under Tab, in the order of the page.
    wanted = page.evaluate(
        """() => {
          const operable = "a[href], button, select, input, summary, [tabindex='0']";
          const elements = [...document.querySelectorAll(operable)].filter((one) => one.checkVisibility());
          elements.forEach((one, index) => (one.dataset.tab = index));
          return elements.length;
        }"""
    )
    reached = []
    for _ in range(wanted + 1):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.tab ?? null"))
    assert [int(index) for index in reached if index is not None][:wanted] == list(range(wanted))
    page.evaluate("document.activeElement.blur()")
    control(page, "split").focus()
    page.keyboard.press("End")
    assert control(page, "split").input_value() == "val"
    assert set(cards(page, "card => card.dataset.split")) == {"val"}


def test_show_more_moves_the_focus_to_the_first_new_card(open_page):
    page = open_page()
    before = page.locator("#cards > article").count()
    page.locator("#more").press("Enter")
    assert page.locator("#cards > article").count() > before
    assert page.evaluate(f"document.querySelectorAll('#cards h3')[{before}] === document.activeElement")


def test_axe_finds_nothing(open_page, view):
    page = open_page(view)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    results = axe.Axe().run(page, options={"resultTypes": ["violations", "incomplete", "passes"]})
    assert results.violations_count == 0, results.generate_report()
    checked = {rule["id"]: len(rule["nodes"]) for rule in results.response["passes"]}
    assert checked["color-contrast"] > 100


def test_nothing_is_wider_than_the_window(open_page, view):
    page = open_page(view)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_scripts_all_cards_are_there(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("article").count() == SAMPLES
    assert not page.locator("#filters").is_visible()
    context.close()
