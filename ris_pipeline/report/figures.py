"""Figures for papers: sample rows as in the paper's Fig. 1 and Fig. 2, as PNG or PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ris_pipeline.artifacts.files import replacing
from ris_pipeline.errors import RisError
from ris_pipeline.report.charts import INK, MUTED
from ris_pipeline.report.panels import Strip
from ris_pipeline.report.tiles import blend_panel

FORMATS = (".png", ".pdf")
_DPI = 200
_TILE = 1.35  # inches, the width of a picture
_GAP = 0.04  # inches between pictures
_CAPTION = 0.25  # inches above each row, for its sentence, and below the last one for the titles
_TEXT: dict[str, Any] = {"fontsize": 9, "color": INK}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as the PNG or PDF that the name says; whole, or not at all. RisError where that fails."""
    check_format(path)
    suffix = path.suffix.lower()
    # Without the date the same figure is the same file. TrueType: submission systems refuse matplotlib's usual Type 3.
    metadata = {"CreationDate": None} if suffix == ".pdf" else {"Software": None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file, matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(file, format=suffix.removeprefix("."), dpi=_DPI, metadata=metadata)
    except OSError as error:
        raise RisError(f"{path}: cannot write the figure there: {error.strerror or error}") from error


def check_format(path: Path) -> None:
    """Raise RisError where the file's name does not end in one of FORMATS."""
    if path.suffix.lower() not in FORMATS:
        raise RisError(
            f"{path}: a figure is written as {' or '.join(FORMATS)}; name it {path.with_suffix('.pdf').name}"
        )


def draw_qualitative(strips: Sequence[Strip]) -> Figure:
    """Draw a row per sample: its sentence, its image and its panels; empty ones say why."""
    heights = [_TILE * strip.image.shape[0] / strip.image.shape[1] for strip in strips]
    with_truth = any(strip.sample.ref.has_truth for strip in strips)
    shown = [[panel for panel in strip.panels if with_truth or panel.kind != "truth"] for strip in strips]
    titles = ["Image", *(panel.title for panel in shown[0])]
    width = len(titles) * (_TILE + _GAP) - _GAP
    height = sum(heights) + _CAPTION * (len(strips) + 1)
    figure = Figure(figsize=(width, height), facecolor="white")
    top = height
    for strip, panels, tile in zip(strips, shown, heights, strict=True):
        sentence = strip.sample.expression.sentence
        # Foreign text: a dollar sign in it begins no formula.
        figure.text(0, (top - 0.6 * _CAPTION) / height, sentence, va="center", parse_math=False, **_TEXT)
        top -= _CAPTION + tile
        for k, panel in enumerate([None, *panels]):
            axes = figure.add_axes((k * (_TILE + _GAP) / width, top / height, _TILE / width, tile / height))
            axes.set_axis_off()
            picture = blend_panel(strip.image, panel) if panel else strip.image
            axes.imshow(np.full_like(strip.image, 240) if picture is None else picture, aspect="auto")
            if panel and picture is None:
                _write_note(axes, panel.note, strip.image.shape)
    for k, title in enumerate(titles):
        figure.text((k * (_TILE + _GAP) + _TILE / 2) / width, 0.4 * _CAPTION / height, title, ha="center", **_TEXT)
    return figure


def _write_note(axes: Axes, note: str, image_shape: tuple[int, ...]) -> None:
    height, width = image_shape[:2]
    words = note.replace(" ", "\n", 1) if len(note) > 14 else note
    axes.text(width / 2, height / 2, words, ha="center", va="center", fontsize=6, color=MUTED, wrap=True)
