"""Gallery cards: a sentence, its pictures as data URIs, its scores and what the page filters by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.report.breakdown import name_length
from ris_pipeline.report.panels import Panel, Strip
from ris_pipeline.report.samples import quality_of, traits_of
from ris_pipeline.report.tiles import encode_panel, encode_photo
from ris_pipeline.scoring.metrics import Outcome
from ris_pipeline.scoring.rows import find_improvement

Share = tuple[float, float]  # left, top in percent of the image
Scores = dict[str, float]  # of one column: iou 0..1, pointit and pointm 0 or 1; absent without ground truth


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a card; `uri` None: an empty tile, and `note` says why."""

    key: str  # as the panel's
    title: str
    uri: str | None
    alt: str
    note: str
    figures: str  # such as "IoU 43"
    point: Share | None = None
    hit: bool | None = None  # whether the point lies in the box; None without a box
    box: tuple[float, float, float, float] | None = None  # left, top, width, height in percent of the image


@dataclass(frozen=True, slots=True)
class Card:
    """One sample as the page shows it."""

    sentence: str
    split: str
    drawn: str
    facts: tuple[str, ...]
    length: str
    has_place: bool
    change: float | None  # in quality by refinement, or from Step-1 to Step-2 where there is none
    scores: dict[str, Scores]  # by column key
    image_name: str
    photo: str
    aspect: str  # CSS aspect-ratio
    tiles: tuple[Tile, ...]


def make_card(strip: Strip, dataset: Dataset, side: int) -> Card:
    """Return the card of a strip, its pictures at most `side` pixels wide and high."""
    sample, hw = strip.sample, (strip.image.shape[0], strip.image.shape[1])
    traits = traits_of(dataset, sample.ref, sample.expression)
    outcomes = {panel.key: panel.outcome for panel in strip.panels if panel.outcome}
    image_name = dataset.images[sample.ref.image_id].path.name
    facts = [f"ref {sample.ref.label}", image_name, f"sentence {sample.expression.sent_id}", f"{traits.n_words} words"]
    if traits.box_share is not None:
        facts.append(f"target {100 * traits.box_share:.0f} % of the image")
    if traits.n_same_kind is not None:
        facts.append(f"{traits.n_same_kind} of its kind")
    return Card(
        sentence=sample.expression.sentence,
        split=sample.split,
        drawn=sample.drawn,
        facts=tuple(facts),
        length=name_length(traits),
        has_place=traits.has_place,
        change=_change(outcomes),
        scores={key: _scores(outcome) for key, outcome in outcomes.items()},
        image_name=image_name,
        photo=encode_photo(strip.image, side),
        aspect=f"{hw[1]} / {hw[0]}",
        tiles=tuple(_make_tile(strip, panel, side) for panel in strip.panels),
    )


def _make_tile(strip: Strip, panel: Panel, side: int) -> Tile:
    hw = strip.image.shape[0], strip.image.shape[1]
    figures = _figures(panel.outcome)
    hit = panel.outcome.point_it if panel.outcome else None
    alt = f"{panel.title} for “{strip.sample.expression.sentence}”"
    if figures:
        alt += f", {figures} %"
    if panel.point and hit is not None:
        alt += ", points inside the box" if hit else ", points outside of the box"
    return Tile(
        key=panel.key,
        title=panel.title,
        uri=encode_panel(panel, hw, side),
        alt=alt,
        note=panel.note,
        figures=figures,
        point=_place(panel, hw),
        hit=hit,
        box=_box(strip, hw) if panel.kind == "truth" else None,
    )


def _place(panel: Panel, hw: tuple[int, int]) -> Share | None:
    if panel.point is None:
        return None
    y, x = panel.point
    return round(100 * (x + 0.5) / hw[1], 2), round(100 * (y + 0.5) / hw[0], 2)


def _box(strip: Strip, hw: tuple[int, int]) -> tuple[float, float, float, float] | None:
    if strip.sample.ref.edges_xyxy is None:
        return None
    x1, y1, x2, y2 = strip.sample.ref.edges_xyxy
    height, width = hw
    left, top, across, down = x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height
    return round(100 * left, 2), round(100 * top, 2), round(100 * across, 2), round(100 * down, 2)


def _figures(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if outcome.iou is not None:
        return f"IoU {100 * outcome.iou:.0f}"
    return "" if outcome.box_iou is None else f"box IoU {100 * outcome.box_iou:.0f}"


def _scores(outcome: Outcome) -> Scores:
    values: dict[str, Any] = {
        "iou": quality_of(outcome), "pointit": outcome.point_it, "pointm": outcome.point_m,
    }  # fmt: skip
    return {key: round(float(value), 4) for key, value in values.items() if value is not None}


def _change(outcomes: dict[str, Outcome]) -> float | None:
    improved = find_improvement(outcomes)
    if improved is None:
        return None
    old, new = (quality_of(outcomes[row]) for row in improved)
    return None if old is None or new is None else round(new - old, 4)
