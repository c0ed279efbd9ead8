"""The stage graph as a picture: a box per stage with its artifacts, an arrow to each stage that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ris_pipeline.report.charts import Theme, new_figure

_BOX_WIDTH, _GAP, _LINE, _TITLE = 1.75, 0.35, 0.17, 0.32  # inches

Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Node:
    """A stage: its name, a line of text per artifact, the stages that it reads, whether all of it is up to date."""

    name: str
    lines: tuple[str, ...]
    reads: tuple[str, ...]
    fresh: bool

    @property
    def height(self) -> float:
        """Of its box in inches."""
        return _TITLE + _LINE * len(self.lines) + 0.08


def draw_graph(nodes: Sequence[Node], theme: Theme) -> Figure:
    """The stages from left to right; a dashed box is not up to date.

    An arrow that a chain of others already implies is left out.
    """
    known = {node.name: node for node in nodes}
    columns: dict[int, list[Node]] = {}
    for node in nodes:
        columns.setdefault(_depth(node, known), []).append(node)
    heights = [sum(node.height for node in column) + _GAP * (len(column) - 1) for column in columns.values()]
    width = len(columns) * _BOX_WIDTH + (len(columns) - 1) * _GAP
    figure, axes = new_figure(theme, width + 0.1, max(heights) + 0.1)
    axes.set_axis_off()
    axes.set_xlim(-0.05, width + 0.05)
    axes.set_ylim(max(heights) + 0.05, -0.05)
    places: dict[str, Place] = {}
    for x, column in columns.items():
        top = (max(heights) - sum(node.height for node in column) - _GAP * (len(column) - 1)) / 2
        for node in column:
            places[node.name] = x * (_BOX_WIDTH + _GAP), top
            top += node.height + _GAP
    for node in nodes:
        _draw_node(axes, node, places[node.name], theme)
        for read in node.reads:
            if read in known and not _is_implied(read, node, known):
                _draw_arrow(axes, known[read], node, places, theme)
    return figure


def _depth(node: Node, known: Mapping[str, Node]) -> int:
    """How many stages lie before one on its longest way."""
    return max((1 + _depth(known[name], known) for name in node.reads if name in known), default=0)


def _is_implied(read: str, node: Node, known: Mapping[str, Node]) -> bool:
    """Whether another stage that the node reads reads this one, directly or not."""
    return any(_reaches(known[other], read, known) for other in node.reads if other in known and other != read)


def _reaches(node: Node, name: str, known: Mapping[str, Node]) -> bool:
    return name in node.reads or any(_reaches(known[read], name, known) for read in node.reads if read in known)


def _draw_node(axes: Axes, node: Node, place: Place, theme: Theme) -> None:
    x, y = place
    axes.add_patch(
        FancyBboxPatch(
            (x, y), _BOX_WIDTH, node.height, boxstyle="round,pad=0,rounding_size=0.08", facecolor=theme.paper,
            edgecolor=theme.series[2] if node.fresh else theme.series[1], linewidth=1.6,
            linestyle="-" if node.fresh else "--",
        )
    )  # fmt: skip
    middle = x + _BOX_WIDTH / 2
    axes.text(middle, y + 0.18, node.name, ha="center", va="center", color=theme.ink, weight="bold", size=9)
    for k, line in enumerate(node.lines):
        below = y + _TITLE + _LINE * (k + 0.5)
        axes.text(middle, below, line, ha="center", va="center", color=theme.muted, size=7.5)


def _draw_arrow(axes: Axes, start: Node, end: Node, places: Mapping[str, Place], theme: Theme) -> None:
    (x0, y0), (x1, y1) = places[start.name], places[end.name]
    axes.annotate(
        "", xy=(x1, y1 + end.height / 2), xytext=(x0 + _BOX_WIDTH, y0 + start.height / 2), zorder=0,
        arrowprops={"arrowstyle": "-|>", "color": theme.muted, "linewidth": 1.2, "shrinkA": 1, "shrinkB": 1},
    )  # fmt: skip
