import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ris_pipeline.report.charts import PRINT, draw_curves, draw_intervals
from ris_pipeline.report.graph import Node, draw_graph
from ris_pipeline.report.svg import PAGE, to_svg
from ris_pipeline.scoring.metrics import Estimate
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score

SCORES = [
    Score(find_row("step1"), "val", 10, {"miou": Estimate(30.0, 25.0, 36.0, 5, 10)}, {"miou": 33.33}),
    Score(find_row("prms"), "val", 10, {"pointit": Estimate(60.0, 55.0, 66.0, 5, 10)}, {}),
]


@pytest.fixture(scope="module")
def svg() -> str:
    return str(to_svg(draw_intervals(SCORES, "miou", PAGE), "chart-1", "mIoU <of> val"))


def test_it_is_one_element_with_a_name_for_screen_readers(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert root.get("aria-label") == "mIoU <of> val"
    assert root.get("viewBox")
    assert root.get("width") is None


def test_text_stays_text_and_rows_without_the_metric_are_left_out(svg):
    words = [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Step-1", "30.0", "paper", "mIoU, percent"} <= set(words)
    assert "PRMS" not in words


def test_colours_are_the_pages_and_nothing_holds_for_the_whole_page(svg):
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == set()
    assert {"ink", "muted", "grid", "series-1", "series-2"} <= set(re.findall(r"var\(--([\w-]+)\)", svg))
    assert "<style" not in svg


def test_ids_of_two_figures_differ_and_are_all_referred_to(svg):
    other = str(to_svg(draw_intervals(SCORES, "miou", PAGE), "chart-2", "the same"))
    ids, others = (set(re.findall(r' id="([^"]+)"', text)) for text in (svg, other))
    assert ids
    assert ids.isdisjoint(others)
    assert ids == set(re.findall(r'#(chart-1-[^")]+)', svg))


def test_the_same_figure_is_the_same_text(svg):
    assert str(to_svg(draw_intervals(SCORES, "miou", PAGE), "chart-1", "mIoU <of> val")) == svg


def test_a_long_curve_is_thinned_and_keeps_its_mean():
    steps = np.arange(10_000.0)
    axes = draw_curves({"loss": (steps, steps)}, PRINT).axes[0]
    for line in axes.lines:
        assert len(line.get_xdata()) <= 240
    assert np.mean(axes.lines[0].get_ydata()) == pytest.approx(steps.mean(), rel=0.01)


def test_the_learning_rate_has_an_axis_of_its_own():
    steps = np.arange(3.0)
    losses, rate = draw_curves({"loss": (steps, 4 - steps), "lr": (steps, 1e-5 * (3 - steps))}, PRINT).axes
    assert losses.get_ylim()[1] > 3
    assert rate.get_ylim()[1] < 1e-4
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [3e-5, 2e-5, 1e-5])
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["loss", "lr (right)"]


def test_scores_of_a_validation_have_a_point_an_epoch_on_an_axis_of_percents():
    steps, ends = np.arange(6.0), np.array([2.0, 5.0])
    curves = {"loss": (steps, 9 - steps), "lr": (steps, 1e-5 * (6 - steps)), "val_miou": (ends, np.array([20.0, 31.0]))}
    losses, scores = draw_curves(curves, PRINT).axes
    (points,) = scores.lines
    assert points.get_xydata().tolist() == [[2, 20], [5, 31]]
    assert scores.get_ylim() == (0, 100)
    assert losses.get_ylim()[1] < 10
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["loss", "mIoU, % (right)"]


def test_the_graph_leaves_out_arrows_that_others_imply():
    nodes = [Node("a", ("1 s",), (), True), Node("b", (), ("a",), True), Node("c", (), ("a", "b", "data"), False)]
    axes = draw_graph(nodes, PRINT).axes[0]
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 2  # a → b → c
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["a", "1 s", "b", "c"]
