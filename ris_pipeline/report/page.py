"""The report as one HTML file: no network, no server; it opens from a disk.

Sentences and file names come from foreign files: Jinja2 escapes them, and the page's own policy lets no script
run but the one written here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ris_pipeline.chain.status import StatusRow
from ris_pipeline.datasets.records import Dataset
from ris_pipeline.process.units import format_duration, format_size
from ris_pipeline.report.breakdown import GROUPINGS, Group
from ris_pipeline.report.cards import GalleryCard, make_card
from ris_pipeline.report.charts import CHARTED, chart_breakdown, chart_curves, chart_scores, title_of
from ris_pipeline.report.curves import Curves
from ris_pipeline.report.panels import read_strips
from ris_pipeline.report.samples import Sample
from ris_pipeline.report.sources import LabelRun, Sources
from ris_pipeline.scoring.rows import STORED_ORACLE, find_row
from ris_pipeline.scoring.scores import Score

_METRICS = ("pointit", "pointm", "miou", "oiou", "prec@0.5", "box_iou", "box@0.5")  # columns of the score table


@dataclass(frozen=True, slots=True)
class Page:
    """All that the report shows."""

    dataset: str
    scores: Sequence[Score]
    curves: Mapping[str, Curves]  # {what was trained: its losses}
    stages: Sequence[tuple[str, StatusRow]]  # as `arrange` has them
    breakdowns: Mapping[str, Mapping[str, Sequence[Group]]]  # {split: {heading: groups}}
    labels: Sequence[LabelRun]
    cards: Sequence[GalleryCard]
    seed: int
    has_truth: bool  # whether any ref has a box or a mask


def make_cards(
    sources: Sources,
    datasets: Mapping[str, Dataset],
    samples: Sequence[Sample],
    side: int,
    device: torch.device,
    advance: Callable[[], object],
) -> list[GalleryCard]:
    """Return the gallery's cards in the order of the samples; advance() is called after each."""
    cards = {}
    for strip in read_strips(sources, datasets, samples, device):
        sample = strip.sample
        cards[sample.split, sample.ref.ref_id] = make_card(strip, datasets[sample.split], side)
        advance()
    return [cards[sample.split, sample.ref.ref_id] for sample in samples]


def render(page: Page) -> str:
    """Return the page as HTML."""
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
    titles = {tile.key: tile.title for card in page.cards for tile in card.tiles}
    judged = {key for card in page.cards for key in card.scores}
    return environment.get_template("page.html.jinja").render(
        page=page,
        newest=max((row.finished for _, row in page.stages), default=""),
        has_paper=any(score.paper for score in page.scores),
        has_tier=any(score.tier != "text" for score in page.scores),
        metrics=[name for name in _METRICS if any(name in score.metrics for score in page.scores)],
        by_split=_by_split(page.scores),
        headline=describe_result(page.scores),
        score_charts=chart_scores(page.scores),
        curves=chart_curves(page.curves),
        breakdowns=[
            (split, tables, chart_breakdown(split, tables), _list_columns(tables))
            for split, tables in page.breakdowns.items()
            if tables
        ],
        lengths=list(GROUPINGS["Sentence length"][1]),
        judged={key: title for key, title in titles.items() if key in judged},
        style=Markup(style),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _list_columns(tables: Mapping[str, Sequence[Group]]) -> list[tuple[str, str]]:
    """Return the (row, metric) of which any group of a breakdown has a score."""
    scores = [group.scores for groups in tables.values() for group in groups]
    rows = dict.fromkeys(row for own in scores for row in own)
    return [(row, metric) for row in rows for metric in CHARTED if any(metric in own.get(row, {}) for own in scores)]


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


def _format_moment(text: str) -> str:
    """Return a time of a manifest, such as 2026-11-25T18:07:30+00:00, as people read it."""
    return text[:16].replace("T", " ") + " UTC" if text.endswith("+00:00") else text
