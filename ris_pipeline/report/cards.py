"""Gallery cards: a sentence, its pictures as data URIs, its scores and what the page filters by."""

from __future__ import annotations

from dataclasses import dataclass

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.report.breakdown import find_group
from ris_pipeline.report.panels import Panel, Strip
from ris_pipeline.report.samples import quality_of, traits_of
from ris_pipeline.report.tiles import encode_panel, encode_photo
from ris_pipeline.scoring.metrics import Outcome
from ris_pipeline.scoring.rows import find_improvement, is_aside


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a card; `uri` None: an empty tile, and `note` says why."""

    key: str  # as the panel's
    title: str
    uri: str | None
    alt: str
    note: str
    figures: str  # such as "IoU 43"
    point: tuple[float, ...] | None  # left, top in percent of the image
    hit: bool | None  # whether the point lies in the box; None without a box
    box: tuple[float, ...] | None  # left, top, width, height in percent of the image
    aside: bool  # shown on demand


@dataclass(frozen=True, slots=True)
class GalleryCard:
    """One sample as the page shows it."""

    sentence: str
    split: str
    drawn: str
    facts: tuple[str, ...]
    length: str | None
    has_place: bool
    change: float | None  # in quality by refinement, or from Step-1 to Step-2 where there is none
    scores: dict[str, dict[str, float]]  # by panel: iou 0..1, pointit and pointm 0 or 1; absent without ground truth
    image_name: str
    photo: str
    aspect: str  # CSS aspect-ratio
    tiles: tuple[Tile, ...]


def make_card(strip: Strip, dataset: Dataset, side: int) -> GalleryCard:
    """Return the card of a strip, its pictures at most `side` pixels wide and high."""
    sample = strip.sample
    traits = traits_of(dataset, sample.ref, sample.expression)
    outcomes = {panel.key: panel.outcome for panel in strip.panels if panel.outcome}
    image_name = dataset.images[sample.ref.image_id].path.name
    facts = [f"ref {sample.ref.label}", image_name, f"sentence {sample.expression.sent_id}", f"{traits.n_words} words"]
    if traits.box_share is not None:
        facts.append(f"target {100 * traits.box_share:.0f} % of the image")
    if traits.n_same_kind is not None:
        facts.append(f"{traits.n_same_kind} of its kind")
    return GalleryCard(
        sentence=sample.expression.sentence,
        split=sample.split,
        drawn=sample.drawn,
        facts=tuple(facts),
        length=find_group("Sentence length", traits),
        has_place=traits.has_place,
        change=_change(outcomes),
        scores={key: _scores(outcome) for key, outcome in outcomes.items()},
        image_name=image_name,
        photo=encode_photo(strip.image, side),
        aspect=f"{strip.image.shape[1]} / {strip.image.shape[0]}",
        tiles=tuple(_make_tile(strip, panel, side) for panel in strip.panels),
    )


def _make_tile(strip: Strip, panel: Panel, side: int) -> Tile:
    height, width = strip.image.shape[:2]
    figures = ""
    if panel.outcome and (quality := quality_of(panel.outcome)) is not None:
        figures = f"{'box IoU' if panel.outcome.iou is None else 'IoU'} {100 * quality:.0f}"
    hit = panel.outcome.point_it if panel.outcome else None
    alt = f"{panel.title} for “{strip.sample.expression.sentence}”"
    if figures:
        alt += f", {figures} %"
    point = box = None
    if panel.point:
        y, x = panel.point
        point = _percent((x + 0.5) / width, (y + 0.5) / height)
        alt += "" if hit is None else ", points inside the box" if hit else ", points outside of the box"
    if panel.kind == "truth" and strip.sample.ref.edges_xyxy:
        x1, y1, x2, y2 = strip.sample.ref.edges_xyxy
        box = _percent(x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height)
    uri = encode_panel(panel, (height, width), side)
    return Tile(panel.key, panel.title, uri, alt, panel.note, figures, point, hit, box, is_aside(panel.key))


def _percent(*shares: float) -> tuple[float, ...]:
    return tuple(round(100 * share, 2) for share in shares)


def _scores(outcome: Outcome) -> dict[str, float]:
    values = {"iou": quality_of(outcome), "pointit": outcome.point_it, "pointm": outcome.point_m}
    return {key: round(float(value), 4) for key, value in values.items() if value is not None}


def _change(outcomes: dict[str, Outcome]) -> float | None:
    improved = find_improvement(outcomes)
    if improved is None:
        return None
    old, new = (quality_of(outcomes[row]) for row in improved)
    return None if old is None or new is None else round(new - old, 4)
