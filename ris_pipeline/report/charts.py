"""Charts by matplotlib, drawn once for pages (as SVG that follows light and dark) and for papers (PNG, PDF).

A chart takes its colours from a Theme: PRINT holds real ones, svg.PAGE places that the page's style fills in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ris_pipeline.report.breakdown import Group
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score

Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # {name: (steps, values)}

TITLES = {
    "pointit": "PointIt", "pointm": "PointM", "miou": "mIoU", "oiou": "oIoU", "box_iou": "box IoU",
}  # fmt: skip
RATE = "lr"  # the curve that is a learning rate: much smaller than a loss
VALIDATED = "val_"  # curves of scores in percent begin so; they have a point an epoch
_FONT: dict[str, Any] = {"size": 9}
_MAX_POINTS = 240  # of a curve: more could not be told apart


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of text, secondary text, grid, background, and of up to six series."""

    ink: str
    muted: str
    grid: str
    paper: str
    series: tuple[str, ...]


# Okabe and Ito's colours that anybody can tell apart, darkened to 3:1 on white.
PRINT = Theme(
    "#1b1e24", "#565c68", "#d9dce2", "#ffffff", ("#0b6bb0", "#b8560b", "#0a7d5a", "#a8447e", "#6b5bb5", "#7a6a00")
)


def title_of(metric: str) -> str:
    """The metric as the field writes it."""
    return TITLES.get(metric, metric.replace("prec", "Prec"))


def draw_intervals(scores: Sequence[Score], metric: str, theme: Theme) -> Figure:
    """A bar per row with its 95 % interval, and a diamond at the paper's figure where it has one."""
    shown = [one for one in scores if metric in one.metrics]
    figure, axes = new_figure(theme, 5.0, 0.75 + 0.27 * len(shown))
    estimates = [one.metrics[metric] for one in shown]
    places = np.arange(len(shown))
    values = [one.value for one in estimates]
    ends = [[one.value - one.ci_low for one in estimates], [one.ci_high - one.value for one in estimates]]
    axes.barh(places, values, height=0.6, color=theme.series[0], alpha=0.45)
    axes.errorbar(values, places, xerr=ends, fmt="none", color=theme.ink, ecolor=theme.ink, elinewidth=1.4, capsize=3)
    for place, one, estimate in zip(places, shown, estimates, strict=True):
        right = max(estimate.ci_high, one.paper.get(metric, 0.0))
        axes.text(right + 1.5, float(place), f"{estimate.value:.1f}", va="center", color=theme.ink, **_FONT)
    papers = [(one.paper[metric], place) for one, place in zip(shown, places, strict=True) if metric in one.paper]
    if papers:
        x, y = zip(*papers, strict=True)
        axes.scatter(x, y, marker="D", s=34, color=theme.series[1], zorder=3, label="paper")
        axes.legend(frameon=False, labelcolor=theme.ink, prop=_FONT, loc="lower right")
    axes.set_yticks(places, [one.row.label for one in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"{title_of(metric)}, percent", color=theme.muted, **_FONT)
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    return figure


def draw_curves(curves: Curves, theme: Theme) -> Figure:
    """Return the losses over the steps, each as recorded, faint, and as a running mean.

    An axis of its own, on the right, has the scores of a validation, or the learning rate where there are none.
    """
    figure, axes = new_figure(theme, 5.0, 2.9)
    plot_curves(axes, curves, theme)
    return figure


def plot_curves(axes: Axes, curves: Curves, theme: Theme) -> None:
    """Draws what draw_curves shows into axes of prepare_axes."""
    scores = {name: curve for name, curve in curves.items() if name.startswith(VALIDATED)}
    losses = {name: curve for name, curve in curves.items() if name != RATE and name not in scores}
    colours = _cycle(theme, len(losses) + len(scores))
    for (name, (steps, values)), colour in zip(losses.items(), colours[: len(losses)], strict=True):
        x, y = _thin(steps, values)
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(x, _running_mean(y), color=colour, linewidth=1.8, label=name)
    axes.set_xlabel("step", color=theme.muted, **_FONT)
    if all(values.min() >= 0 for _, values in losses.values()):
        axes.set_ylim(bottom=0)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if scores:
        _plot_scores(axes, scores, colours[len(losses) :], theme)
    elif RATE in curves:
        _plot_rate(axes, *curves[RATE], theme)
    # Above the axes: inside, some curve runs behind it.
    columns = 3 if max(map(len, curves), default=0) < 12 else 2
    place = (-0.02, 1.0)
    axes.legend(frameon=False, labelcolor=theme.ink, prop=_FONT, loc="lower left", bbox_to_anchor=place, ncols=columns)


def _plot_scores(axes: Axes, scores: Curves, colours: Sequence[str], theme: Theme) -> None:
    """Draws scores in percent as points, joined, on the right; the legend of `axes` names them."""
    right = _add_right(axes, theme)
    right.set_ylim(0, 100)
    for (name, (steps, values)), colour in zip(scores.items(), colours, strict=True):
        style: dict[str, Any] = {"color": colour, "linewidth": 1.2, "linestyle": ":", "marker": "o", "markersize": 4}
        right.plot(steps, values, **style)
        axes.plot([], [], label=f"{title_of(name.removeprefix(VALIDATED))}, % (right)", **style)


def _plot_rate(axes: Axes, steps: NDArray[np.float64], rates: NDArray[np.float64], theme: Theme) -> None:
    """Draws the learning rate as a dashed line on the right; the legend of `axes` names it."""
    right = _add_right(axes, theme)
    right.yaxis.get_offset_text().set(color=theme.muted, size=_FONT["size"])
    right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    style: dict[str, Any] = {"color": theme.muted, "linewidth": 1.2, "linestyle": "--"}
    right.plot(*_thin(steps, rates), **style)
    right.set_ylim(bottom=0)
    axes.plot([], [], label=f"{RATE} (right)", **style)


def _add_right(axes: Axes, theme: Theme) -> Axes:
    """An axis to the right over the same steps."""
    right = axes.twinx()
    prepare_axes(right, theme)
    right.spines["left"].set_visible(False)
    right.spines["right"].set_visible(True)
    right.tick_params(colors=theme.muted)
    return right


def draw_breakdown(groups: Sequence[Group], rows: Sequence[str], metric: str, theme: Theme) -> Figure:
    """The rows' scores on each group, with 95 % intervals, side by side."""
    figure, axes = new_figure(theme, 5.0, 2.9)
    offsets = np.linspace(-0.2, 0.2, len(rows)) if len(rows) > 1 else np.zeros(1)
    markers = "osD^vP"
    for i, (row, offset, colour) in enumerate(zip(rows, offsets, _cycle(theme, len(rows)), strict=True)):
        points = [(k + offset, group.scores[row][metric]) for k, group in enumerate(groups) if _has(group, row, metric)]
        if not points:
            continue
        x, y = [place for place, _ in points], [one.value for _, one in points]
        ends = [[one.value - one.ci_low for _, one in points], [one.ci_high - one.value for _, one in points]]
        axes.errorbar(
            x,
            y,
            yerr=ends,
            fmt=markers[i % len(markers)],
            color=colour,
            capsize=3,
            label=find_row(row).label,
            markersize=5,
        )
    axes.set_xticks(range(len(groups)), [_wrap(group) for group in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"{title_of(metric)}, percent", color=theme.muted, **_FONT)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    figure.legend(frameon=False, labelcolor=theme.ink, prop=_FONT, ncols=len(rows), loc="outside upper left")
    return figure


def _wrap(group: Group) -> str:
    """The group's name on two lines where it is long, and its number of sentences below."""
    words = group.name.split()
    half = (len(words) + 1) // 2
    name = "\n".join([" ".join(words[:half]), " ".join(words[half:])]) if len(group.name) > 9 else group.name
    return f"{name}\n{group.n_sentences:,}"


def _has(group: Group, row: str, metric: str) -> bool:
    return metric in group.scores.get(row, {})


def new_figure(theme: Theme, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches with plain axes; not by pyplot, which would keep it for ever."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot()
    prepare_axes(axes, theme)
    return figure, axes


def prepare_axes(axes: Axes, theme: Theme) -> None:
    """Gives axes the theme's colours, and lines on their left and lower side only."""
    axes.set_facecolor(theme.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.muted)
    axes.tick_params(colors=theme.ink, labelsize=_FONT["size"], length=3)
    axes.set_axisbelow(True)


def _cycle(theme: Theme, n: int) -> list[str]:
    return [theme.series[i % len(theme.series)] for i in range(n)]


def _thin(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most _MAX_POINTS points: means of equally many neighbours each."""
    size = -(-len(steps) // _MAX_POINTS)
    starts = np.arange(0, len(steps), size)
    counts = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of up to a tenth of the points around each."""
    half = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean
