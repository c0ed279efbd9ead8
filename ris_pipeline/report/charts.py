"""Charts by matplotlib on white, for pages (SVG) and for papers (PNG, PDF)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ris_pipeline.report.breakdown import Group
from ris_pipeline.report.curves import Curves, summarise_curves
from ris_pipeline.scoring.metrics import Estimate
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score

TITLES = {
    "pointit": "PointIt", "pointm": "PointM", "miou": "mIoU", "oiou": "oIoU", "box_iou": "box IoU",
}  # fmt: skip
RATE = "lr"  # the curve that is a learning rate: much smaller than a loss
VALIDATED = "val_"  # curves of scores in percent begin so; they have a point an epoch
CHARTED = ("pointit", "miou")
_FONT: dict[str, Any] = {"size": 9}
_FIGURE: dict[str, Any] = {"layout": "constrained", "facecolor": "white"}  # not by pyplot, which would keep it
_MAX_POINTS = 240  # of a curve: more could not be told apart
INK, MUTED, GRID = "#1b1e24", "#565c68", "#d9dce2"
# Okabe and Ito's colours that anybody can tell apart, darkened to 3:1 on white.
SERIES = ("#0b6bb0", "#b8560b", "#0a7d5a", "#a8447e", "#6b5bb5", "#7a6a00")


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture under its heading; `summary` says below it what it shows."""

    title: str
    src: str  # data URI
    alt: str
    summary: str = ""


def make_chart(title: str, figure: Figure, alt: str, summary: str = "") -> Chart:
    """Return the figure as an SVG for a page; the same figure gives the same text."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ris"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Chart(title, f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode('ascii')}", alt, summary)


def chart_scores(scores: Sequence[Score]) -> dict[str, list[Chart]]:
    """Return by split a chart of the rows' intervals for each of CHARTED that has been scored."""
    charts: dict[str, list[Chart]] = {score.split: [] for score in scores}
    for split, own in charts.items():
        for metric in CHARTED:
            shown = [score for score in scores if score.split == split and metric in score.metrics]
            if shown:
                title = f"{title_of(metric)} on {split}"
                alt = f"{title}, the figures of the table as bars with their intervals"
                own.append(make_chart(title, draw_intervals(shown, metric), alt))
    return charts


def chart_curves(curves: Mapping[str, Curves]) -> list[Chart]:
    """Return a chart of the losses of each training, {what was trained: its losses}."""
    charts = []
    for learner, own in curves.items():
        summary = summarise_curves(own)
        charts.append(make_chart(learner, draw_curves({learner: own}), f"Losses of {learner}. {summary}", summary))
    return charts


def chart_breakdown(split: str, tables: Mapping[str, Sequence[Group]]) -> dict[str, Chart]:
    """Return a chart of mIoU, or of PointIt without masks, for each heading of a split's breakdown."""
    charts = {}
    for heading, groups in tables.items():
        rows = list(dict.fromkeys(row for group in groups for row in group.scores))
        has_masks = any("miou" in scores for group in groups for scores in group.scores.values())
        metric = "miou" if has_masks else "pointit"
        title = f"{heading}: {title_of(metric)}"
        alt = f"{title} on {split}, the figures of the table below with their intervals"
        charts[heading] = make_chart(title, draw_breakdown(groups, rows, metric), alt)
    return charts


def title_of(metric: str) -> str:
    """Return the metric as the field writes it."""
    return TITLES.get(metric, metric.replace("prec", "Prec"))


def draw_intervals(scores: Sequence[Score], metric: str) -> Figure:
    """Draw a bar per score with its 95 % interval, and a diamond at the paper's figure where it has one."""
    figure = Figure(figsize=(5.0, 0.75 + 0.27 * len(scores)), **_FIGURE)
    axes = _add_axes(figure)
    estimates = [score.metrics[metric] for score in scores]
    places = np.arange(len(scores))
    values = [estimate.value for estimate in estimates]
    axes.barh(places, values, height=0.6, color=SERIES[0], alpha=0.45)
    axes.errorbar(values, places, xerr=_ends(estimates), fmt="none", ecolor=INK, elinewidth=1.4, capsize=3)
    for place, score, estimate in zip(places, scores, estimates, strict=True):
        right = max(estimate.ci_high, score.paper.get(metric, 0.0))
        axes.text(right + 1.5, float(place), f"{estimate.value:.1f}", va="center", color=INK, **_FONT)
    papers = {k: score.paper[metric] for k, score in enumerate(scores) if metric in score.paper}
    if papers:
        style: dict[str, Any] = {"marker": "D", "s": 34, "color": SERIES[1], "zorder": 3, "label": "paper"}
        axes.scatter(list(papers.values()), list(papers), **style)
        axes.legend(frameon=False, labelcolor=INK, prop=_FONT, loc="lower right")
    axes.set_yticks(places, [score.row.label for score in scores])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"{title_of(metric)}, percent", color=MUTED, **_FONT)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    return figure


def draw_curves(curves: Mapping[str, Curves], titled: bool = False) -> Figure:
    """Draw the losses of each training, {what was trained: its losses}, side by side."""
    figure = Figure(figsize=(5.0 * len(curves), 2.9), **_FIGURE)
    for k, (learner, own) in enumerate(curves.items()):
        axes = _add_axes(figure, (1, len(curves), k + 1))
        _plot_curves(axes, own)
        if titled:
            axes.set_title(learner, fontsize=10, color=INK, loc="left", pad=36)  # above two lines of legend
    return figure


def _plot_curves(axes: Axes, curves: Curves) -> None:
    """Draw each loss as recorded, faint, and as a running mean.

    An axis on the right has the scores of a validation, or the learning rate where there are none.
    """
    scores = {name: curve for name, curve in curves.items() if name.startswith(VALIDATED)}
    losses = {name: curve for name, curve in curves.items() if name != RATE and name not in scores}
    for k, (name, (steps, values)) in enumerate(losses.items()):
        x, y = _thin(steps, values)
        colour = SERIES[k % len(SERIES)]
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(x, _running_mean(y), color=colour, linewidth=1.8, label=name)
    axes.set_xlabel("step", color=MUTED, **_FONT)
    if all(values.min() >= 0 for _, values in losses.values()):
        axes.set_ylim(bottom=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if scores:
        _plot_scores(axes, scores, first_colour=len(losses))
    elif RATE in curves:
        _plot_rate(axes, *curves[RATE])
    # Above the axes: inside, some curve runs behind it.
    columns = 3 if max(map(len, curves), default=0) < 12 else 2
    place = (-0.02, 1.0)
    axes.legend(frameon=False, labelcolor=INK, prop=_FONT, loc="lower left", bbox_to_anchor=place, ncols=columns)


def _plot_scores(axes: Axes, scores: Curves, first_colour: int) -> None:
    """Draw scores in percent as points, joined, on the right; the legend of `axes` names them."""
    right = _add_right(axes)
    right.set_ylim(0, 100)
    for k, (name, (steps, values)) in enumerate(scores.items(), start=first_colour):
        colour = SERIES[k % len(SERIES)]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.2, "linestyle": ":", "marker": "o", "markersize": 4}
        right.plot(steps, values, **style)
        axes.plot([], [], label=f"{title_of(name.removeprefix(VALIDATED))}, % (right)", **style)


def _plot_rate(axes: Axes, steps: NDArray[np.float64], rates: NDArray[np.float64]) -> None:
    """Draw the learning rate as a dashed line on the right; the legend of `axes` names it."""
    right = _add_right(axes)
    right.yaxis.get_offset_text().set(color=MUTED, size=_FONT["size"])
    right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    style: dict[str, Any] = {"color": MUTED, "linewidth": 1.2, "linestyle": "--"}
    right.plot(*_thin(steps, rates), **style)
    right.set_ylim(bottom=0)
    axes.plot([], [], label=f"{RATE} (right)", **style)


def _add_right(axes: Axes) -> Axes:
    """Return an axis to the right over the same steps."""
    right = axes.twinx()
    _style_axes(right)
    right.spines["left"].set_visible(False)
    right.spines["right"].set_visible(True)
    right.tick_params(colors=MUTED)
    return right


def draw_breakdown(groups: Sequence[Group], rows: Sequence[str], metric: str) -> Figure:
    """Draw the rows' scores on each group, with 95 % intervals, side by side."""
    figure = Figure(figsize=(5.0, 2.9), **_FIGURE)
    axes = _add_axes(figure)
    offsets = np.linspace(-0.2, 0.2, len(rows)) if len(rows) > 1 else np.zeros(1)
    markers = "osD^vP"
    for i, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        points = [
            (k + offset, group.scores[row][metric])
            for k, group in enumerate(groups)
            if metric in group.scores.get(row, {})
        ]
        if points:
            estimates = [estimate for _, estimate in points]
            axes.errorbar(
                [place for place, _ in points], [estimate.value for estimate in estimates], yerr=_ends(estimates),
                fmt=markers[i % len(markers)], color=SERIES[i % len(SERIES)], capsize=3, label=find_row(row).label,
                markersize=5,
            )  # fmt: skip
    axes.set_xticks(range(len(groups)), [_wrap(group) for group in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"{title_of(metric)}, percent", color=MUTED, **_FONT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    figure.legend(frameon=False, labelcolor=INK, prop=_FONT, ncols=len(rows), loc="outside upper left")
    return figure


def _ends(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Return how far the intervals reach below and above their values."""
    below = [estimate.value - estimate.ci_low for estimate in estimates]
    return [below, [estimate.ci_high - estimate.value for estimate in estimates]]


def _wrap(group: Group) -> str:
    """Return the group's name on two lines where it is long, and its number of sentences below."""
    words = group.name.split()
    half = (len(words) + 1) // 2
    name = "\n".join([" ".join(words[:half]), " ".join(words[half:])]) if len(group.name) > 9 else group.name
    return f"{name}\n{group.n_sentences:,}"


def _add_axes(figure: Figure, place: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    axes = figure.add_subplot(*place)
    _style_axes(axes)
    return axes


def _style_axes(axes: Axes) -> None:
    """Draw lines on the left and lower side only, and the grid below what is plotted."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=_FONT["size"], length=3)
    axes.set_axisbelow(True)


def _thin(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most _MAX_POINTS points: means of equally many neighbours each."""
    size = -(-len(steps) // _MAX_POINTS)
    starts = np.arange(0, len(steps), size)
    counts = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of up to a tenth of the points around each."""
    half = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean
