"""The page as text: what is foreign is escaped. Its behaviour: tests/pipeline/test_report_in_browser.py."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.chain.status import StatusRow
from ris_pipeline.datasets.records import Annotation, Dataset, Expression, Image, Ref
from ris_pipeline.report.cards import make_card
from ris_pipeline.report.page import Page, describe_result, render
from ris_pipeline.report.panels import Panel, Strip
from ris_pipeline.report.samples import Sample
from ris_pipeline.report.sources import LabelRun
from ris_pipeline.scoring.metrics import Estimate, Outcome
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score

EVIL = '<script>alert(1)</script> "><img src=x onerror=alert(2)> {{ 7 * 7 }} & \u201cquotes\u201d'


class Parsed(HTMLParser):
    """Collects the elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def make_page(cards=(), scores=(), **changes) -> Page:
    why = ("configuration.lr: 1 → 2",)
    stale = StatusRow("step1", "stale", "2026-11-25T18:07:30+00:00", 75.0, 1_500_000, "runs/toy/step1/ab12", why)
    stages = [("", stale), ("└─ ", StatusRow("responses", "missing", why=("run: ris dump-responses",)))]
    values = {
        "dataset": "toy", "scores": scores, "curves": {}, "stages": stages, "breakdowns": {}, "cards": cards,
        "labels": (), "seed": 0, "has_truth": True,
    }  # fmt: skip
    return Page(**values | changes)


@pytest.fixture
def card():
    ref = Ref(7, 1, "val", (Expression(70, EVIL),), (Annotation((2, 2, 6, 10)),), n_same_kind=3)
    dataset = Dataset("toy", "val", {1: Image(1, Path(f"{EVIL[:8]}.jpg"), (20, 40))}, (ref,))
    outcome = Outcome(7, 70, 1, True, False, 30, 60, 0.5)
    panels = (
        Panel("step1", "Step-1 map", "map", np.ones((20, 40), np.float32), "", (5, 10), outcome),
        Panel("step2", "Step-2 mask", "mask", note="not yet"),
        Panel("truth", "Ground truth", "truth", np.zeros((20, 40), np.uint8), EVIL),
    )
    strip = Strip(Sample("val", ref, ref.expressions[0], "random"), np.zeros((20, 40, 3), np.uint8), panels)
    return make_card(strip, dataset, 32)


def test_foreign_text_stays_text(card):
    text = render(make_page([card], dataset=EVIL))
    page = Parsed(text)
    assert len(page.all("script")) == 1  # the page's own
    assert not any("onerror" in found for _, found in page.elements)
    assert EVIL in page.texts  # the sentence, as its heading


def test_only_the_own_script_may_run_and_nothing_may_be_loaded(card):
    text = render(make_page([card]))
    page = Parsed(text)
    (policy,) = [found["content"] for found in page.all("meta") if found.get("http-equiv") == "Content-Security-Policy"]
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)


def test_a_card_says_all_that_the_filters_need(card):
    (article,) = Parsed(render(make_page([card]))).all("article")
    assert (article["data-split"], article["data-place"], article["data-drawn"]) == ("val", "0", "random")
    assert json.loads(article["data-scores"]) == {"step1": {"iou": 0.5, "pointit": 1, "pointm": 0}}


def test_tiles_have_words_and_empty_ones_say_why(card):
    page = Parsed(render(make_page([card])))
    alts = [found["alt"] for found in page.all("img")]
    assert alts == [
        f"Step-1 map for \u201c{EVIL}\u201d, IoU 50 %, points inside the box",
        f"Ground truth for \u201c{EVIL}\u201d",
    ]
    assert page.texts.count("not yet") == 1
    (point,) = page.all("span", **{"class": "point"})
    assert point["style"] == "left: 26.25%; top: 27.5%"  # the middle of pixel (5, 10) of 20 by 40
    (box,) = page.all("span", **{"class": "box"})
    assert box["style"] == "left: 5.0%; top: 10.0%; width: 10.0%; height: 40.0%"


def test_the_papers_figures_stand_beside_the_runs():
    score = Score(find_row("step1"), "val", 1234, {"miou": Estimate(30.04, 25.0, 36.0, 5, 10)}, {"miou": 33.33})
    words = [text.strip() for text in Parsed(render(make_page(scores=[score]))).texts]
    assert {"Step-1", "1,234", "30.0", "±5.5", "33.33"} <= set(words)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"refs": 1200, "empty": 3, "tiny": 4, "ignored_per_mille": 15}, ["1,200", "3", "4", "1.5 %", "–", "–", "–"]),
        ({}, ["–"] * 7),
    ],
    ids=["without overlap", "without counts"],
)
def test_labels_say_what_is_known_of_them_and_what_is_not(counts, expected):
    """An older artifact has fewer counts, the first round no labels before it, and there is no truth."""
    manifest = {"stage": "pseudolabels", "flags": {"refine": True}, "inputs": {}, "counts": counts}
    page = Parsed(render(make_page(labels=[LabelRun(Artifact(Path("runs"), manifest), None)])))
    words = [text.strip() for text in page.texts if text.strip()]
    cells = words[words.index("pseudolabels/refine") + 2 :][:7]
    assert cells == expected


def test_a_stage_shows_time_size_and_why_it_is_stale():
    words = [text.strip() for text in Parsed(render(make_page())).texts]
    assert {"stale", "configuration.lr: 1 → 2", "1 min 15 s", "1.5 MB", "2026-11-25 18:07 UTC", "ab12"} <= set(words)
    assert {"missing", "run: ris dump-responses"} <= set(words)


def test_a_stage_stands_to_the_right_of_what_it_is_made_from():
    styles = [found["style"] for found in Parsed(render(make_page())).all("th", scope="row")]
    assert styles == ["--depth: 0", "--depth: 1"]


def test_a_page_without_samples_says_what_makes_them():
    assert "ris dump-responses" in Parsed(render(make_page())).texts


def test_the_headline_says_what_step2_reaches_and_beside_what():
    def score(row, split, **metrics):
        estimates = {name: Estimate(value, value - 1, value + 1, 9, 9) for name, value in metrics.items()}
        return Score(find_row(row), split, 9, estimates, {})

    scores = [
        score("step1", "val", miou=36.0, pointit=74.0),
        score("step2", "val", miou=57.5, pointit=81.6),
        score("oracle, stored", "val", miou=74.0),
        score("step2", "train", miou=90.0),
        score("step2", "testA", miou=60.0),
    ]
    assert describe_result(scores) == (
        "Step-2 on val: mIoU 57.5, PointIt 81.6 (+21.5 mIoU over Step-1, 78% of what true masks give). "
        "Step-2 on testA: mIoU 60.0."
    )
    assert describe_result(scores[:1]) == ""


def test_photographs_print():
    css = resources.files("ris_pipeline.report").joinpath("page.css").read_text()
    printed = css[css.index("@media print") :]
    assert "print-color-adjust: exact" in printed
    assert "overflow: visible" in printed


def test_data_without_truth_are_not_spoken_of_as_if_they_had_any():
    page = render(make_page(has_truth=False))
    text = page[page.index("<main>") : page.index("</main>")]  # without styles and scripts
    assert "no boxes and no masks" in text
    for word in ("best", "worst", "IoU", "inside the box"):
        assert word not in text, word
