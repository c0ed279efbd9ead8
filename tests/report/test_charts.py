import base64
from xml.etree import ElementTree

import numpy as np
import pytest

from ris_pipeline.report.breakdown import Group
from ris_pipeline.report.charts import INK, MUTED, SERIES, chart_breakdown, chart_scores, draw_curves
from ris_pipeline.scoring.metrics import Estimate
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score

SCORES = [
    Score(find_row("step1"), "val", 10, {"miou": Estimate(30.0, 25.0, 36.0, 5, 10)}, {"miou": 33.33}),
    Score(find_row("prms"), "val", 10, {"pointit": Estimate(60.0, 55.0, 66.0, 5, 10)}),
]


def words(chart) -> list[str]:
    """The texts in a chart, which an <img> shows from a data URI."""
    head, _, data = chart.src.partition(",")
    assert head == "data:image/svg+xml;base64"
    root = ElementTree.fromstring(base64.b64decode(data))
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_chart_for_each_metric_with_the_rows_that_have_it():
    pointit, miou = chart_scores(SCORES)["val"]
    assert (pointit.title, miou.title) == ("PointIt on val", "mIoU on val")
    assert {"Step-1", "30.0", "paper", "mIoU, percent"} <= set(words(miou))
    assert "PRMS" not in words(miou)
    assert "PRMS" in words(pointit)
    assert miou.alt.startswith("mIoU on val, the figures of the table")


def test_the_same_figure_is_the_same_text():
    assert chart_scores(SCORES) == chart_scores(SCORES)


def test_a_breakdown_is_of_points_where_there_are_no_masks():
    pointit, miou = Estimate(60.0, 55.0, 66.0, 5, 10), Estimate(30.0, 25.0, 36.0, 5, 10)
    groups = [Group("up to 5 %", 7, {"step1": {"pointit": pointit}}), Group("over 30 %", 3, {})]
    with_masks = [Group("with place words", 7, {"step1": {"pointit": pointit, "miou": miou}})]
    size, place = chart_breakdown("val", {"Size": groups, "Place": with_masks}).values()
    assert (size.title, place.title) == ("Size: PointIt", "Place: mIoU")
    assert {"Step-1", "7", "3"} <= set(words(size))


def luminance(colour: str) -> float:
    """Of #rrggbb, as WCAG 2.2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colour", "least"), [(INK, 4.5), (MUTED, 4.5), *((colour, 3) for colour in SERIES)])
def test_what_charts_draw_can_be_seen_on_white(colour, least):
    # axe-core looks at text in HTML only, not into pictures.
    assert 1.05 / (luminance(colour) + 0.05) >= least


def test_a_long_curve_is_thinned_and_keeps_its_mean():
    steps = np.arange(10_000.0)
    axes = draw_curves({"Step-1": {"loss": (steps, steps)}}).axes[0]
    for line in axes.lines:
        assert len(line.get_xdata()) <= 240
    assert np.mean(axes.lines[0].get_ydata()) == pytest.approx(steps.mean(), rel=0.01)


def test_the_learning_rate_has_an_axis_of_its_own():
    steps = np.arange(3.0)
    losses, rate = draw_curves({"Step-1": {"loss": (steps, 4 - steps), "lr": (steps, 1e-5 * (3 - steps))}}).axes
    assert losses.get_ylim()[1] > 3
    assert rate.get_ylim()[1] < 1e-4
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [3e-5, 2e-5, 1e-5])
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["loss", "lr (right)"]


def test_scores_of_a_validation_have_a_point_an_epoch_on_an_axis_of_percents():
    steps, ends = np.arange(6.0), np.array([2.0, 5.0])
    curves = {"loss": (steps, 9 - steps), "lr": (steps, 1e-5 * (6 - steps)), "val_miou": (ends, np.array([20.0, 31.0]))}
    losses, scores = draw_curves({"Step-1": curves}).axes
    (points,) = scores.lines
    assert points.get_xydata().tolist() == [[2, 20], [5, 31]]
    assert scores.get_ylim() == (0, 100)
    assert losses.get_ylim()[1] < 10
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["loss", "mIoU, % (right)"]
