"""The report as one HTML file: no network, no server; it opens from a disk.

Sentences and file names come from foreign files: Jinja2 escapes them, and the page's own policy lets no script
run but the one written here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ris_pipeline.report.breakdown import Group
from ris_pipeline.report.cards import Card
from ris_pipeline.report.charts import title_of
from ris_pipeline.report.stage_rows import StageRow
from ris_pipeline.scoring.rows import STORED_ORACLE, find_row
from ris_pipeline.scoring.scores import Score

HEADLINE = ("pointit", "pointm", "miou", "oiou", "prec@0.5", "box_iou", "box@0.5")  # columns of the score table


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart under its heading; `summary` says in words what it shows."""

    title: str
    svg: Markup
    summary: str


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The groups of one split under each heading, with a chart each; a table column per (row, metric)."""

    split: str
    table_columns: Sequence[tuple[str, str]]
    tables: Mapping[str, Sequence[Group]]
    charts: Mapping[str, Chart]


@dataclass(frozen=True, slots=True)
class Page:
    """All that the report shows."""

    dataset: str
    newest: str  # when the newest artifact was finished
    scores: Sequence[Score]
    score_charts: Mapping[str, Sequence[Chart]]  # by split
    has_paper: bool  # whether the paper has figures for this data set
    curves: Sequence[Chart]
    graph: Chart
    stages: Sequence[StageRow]
    breakdowns: Sequence[Breakdown]
    columns: Mapping[str, str]  # {key: title} of those that are scored, to judge by
    cards: Sequence[Card]
    seed: int
    has_truth: bool  # whether any ref shown has a box or a mask


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("ris_pipeline.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric_title": title_of, "row_label": lambda row: find_row(row).label,
        "size": format_size, "duration": format_duration, "moment": _format_moment,
    }  # fmt: skip
    script, style = _read("page.js"), _read("page.css")
    return environment.get_template("page.html.jinja").render(
        page=page,
        metrics=[name for name in HEADLINE if any(name in score.metrics for score in page.scores)],
        by_split=_by_split(page.scores),
        headline=describe_result(page.scores),
        style=Markup(style),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def describe_result(scores: Sequence[Score]) -> str:
    """Return what Step-2 reaches on the splits that it did not learn from, and beside what, in a sentence each.

    Empty where that was not scored.
    """
    sentences = []
    for split, rows in _by_split(scores).items():
        by_row = {score.row.name: score.metrics for score in rows}
        step2 = by_row.get("step2", {})
        if split == "train" or "miou" not in step2:
            continue
        text = f"Step-2 on {split}: mIoU {step2['miou'].value:.1f}"
        if "pointit" in step2:
            text += f", PointIt {step2['pointit'].value:.1f}"
        beside = []
        if "miou" in by_row.get("step1", {}):
            beside.append(f"{step2['miou'].value - by_row['step1']['miou'].value:+.1f} mIoU over Step-1")
        bound = by_row.get("step2-oracle", by_row.get(STORED_ORACLE.name, {}))
        if "miou" in bound:
            beside.append(f"{step2['miou'].value / bound['miou'].value:.0%} of what true masks give")
        sentences.append(f"{text} ({', '.join(beside)})." if beside else f"{text}.")
    return " ".join(sentences)


def _read(name: str) -> str:
    return resources.files("ris_pipeline.report").joinpath(name).read_text(encoding="utf-8")


def _by_split(scores: Sequence[Score]) -> dict[str, list[Score]]:
    splits: dict[str, list[Score]] = {}
    for score in scores:
        splits.setdefault(score.split, []).append(score)
    return splits


def format_size(n_bytes: int | None) -> str:
    """A number of bytes as people read it, nothing for None."""
    if n_bytes is None:
        return ""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 100_000 else f"{n_bytes / 1e3:.1f} kB"


def format_duration(seconds: float | None) -> str:
    """Seconds as people read them, nothing for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _format_moment(text: str) -> str:
    """A time of a manifest, such as 2026-11-25T18:07:30+00:00, as people read it."""
    return text[:16].replace("T", " ") + " UTC" if text.endswith("+00:00") else text
