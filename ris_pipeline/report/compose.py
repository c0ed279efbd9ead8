"""The parts of the report's page from what the stages left: charts with their words, breakdowns, the stage graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.report.breakdown import Group, break_down
from ris_pipeline.report.charts import (
    Curves,
    draw_breakdown,
    draw_curves,
    draw_intervals,
    title_of,
)
from ris_pipeline.report.curves import summarise_curves
from ris_pipeline.report.graph import Node, draw_graph
from ris_pipeline.report.page import Breakdown, Chart, format_duration, format_size
from ris_pipeline.report.stage_rows import StageRow
from ris_pipeline.report.svg import PAGE, to_svg
from ris_pipeline.scoring.metrics import Outcome
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score

CHARTED = ("pointit", "miou")
_MAX_LINES = 5  # in a box of the stage graph


def chart_scores(scores: Sequence[Score]) -> dict[str, list[Chart]]:
    """By split, a chart of the rows' intervals for each of CHARTED that has been scored."""
    charts: dict[str, list[Chart]] = {}
    for split in dict.fromkeys(one.split for one in scores):
        rows = [one for one in scores if one.split == split]
        charts[split] = []
        for metric in CHARTED:
            if any(metric in one.metrics for one in rows):
                title = f"{title_of(metric)} on {split}"
                description = f"{title}, the figures of the table as bars with their intervals"
                svg = to_svg(draw_intervals(rows, metric, PAGE), f"scores-{split}-{metric}", description)
                charts[split].append(Chart(title, svg, ""))
    return charts


def chart_curves(curves: Mapping[str, Curves]) -> list[Chart]:
    """A chart of the losses of each training, by what is trained."""
    charts = []
    for title, own in curves.items():
        if own:
            summary = summarise_curves(own)
            svg = to_svg(draw_curves(own, PAGE), f"curves-{title.replace(' ', '-')}", f"Losses of {title}. {summary}")
            charts.append(Chart(title, svg, summary))
    return charts


def break_down_split(
    dataset: Dataset, outcomes: Mapping[str, Sequence[Outcome]], n_bootstrap: int, seed: int
) -> Breakdown | None:
    """The breakdown of one split with a chart of mIoU, or PointIt without masks, for each heading; None if empty."""
    own = {row: of_row for row, of_row in outcomes.items() if of_row and find_row(row).tile}
    tables = break_down(dataset, own, n_bootstrap, seed) if own else {}
    if not tables:
        return None
    charts = {}
    for k, (heading, groups) in enumerate(tables.items()):
        metric = "miou" if any(_has(group, "miou") for group in groups) else "pointit"
        title = f"{heading}: {title_of(metric)}"
        figure = draw_breakdown(groups, list(own), metric, PAGE)
        description = f"{title} on {dataset.split}, the figures of the table below with their intervals"
        charts[heading] = Chart(title, to_svg(figure, f"breakdown-{dataset.split}-{k}", description), "")
    all_scores = [group.scores for groups in tables.values() for group in groups]
    table_columns = [
        (row, metric)
        for row in own
        for metric in CHARTED
        if any(metric in scores.get(row, {}) for scores in all_scores)
    ]
    return Breakdown(dataset.split, table_columns, tables, charts)


def _has(group: Group, metric: str) -> bool:
    return any(metric in scores for scores in group.scores.values())


def chart_stages(rows: Sequence[StageRow]) -> Chart:
    """The stage graph, a box per stage; more than _MAX_LINES artifacts of one are counted instead of listed."""
    stages: dict[str, list[StageRow]] = {}
    for row in rows:
        stages.setdefault(row.name.partition("/")[0], []).append(row)
    nodes = [_node(stage, own) for stage, own in stages.items()]
    words = "; ".join(f"{node.name}: {', '.join(node.lines)}" for node in nodes)
    return Chart("Stages", to_svg(draw_graph(nodes, PAGE), "stages-graph", f"Graph of the stages. {words}"), "")


def _node(stage: str, rows: Sequence[StageRow]) -> Node:
    made = [row for row in rows if row.digest]
    lines = [_line(row.name.partition("/")[2], row.state, row.seconds, row.n_bytes) for row in made]
    if len(made) > _MAX_LINES:
        n_fresh = sum(row.state == "fresh" for row in made)
        seconds, n_bytes = (sum(getattr(row, name) or 0 for row in made) for name in ("seconds", "n_bytes"))
        lines = [f"{len(made)} artifacts, {n_fresh} fresh", _line("", "fresh", seconds, n_bytes)]
    reads = dict.fromkeys(read.partition("/")[0] for row in rows for read in row.reads)
    fresh = all(row.state == "fresh" for row in rows)
    return Node(stage, tuple(lines or ["missing"]), tuple(read for read in reads if read != stage), fresh)


def _line(label: str, state: str, seconds: float | None, n_bytes: int | None) -> str:
    parts = [f"{label}:" if label else "", f"{format_duration(seconds)}, {format_size(n_bytes)}"]
    return " ".join([*parts, "" if state == "fresh" else f"({state})"]).strip()
