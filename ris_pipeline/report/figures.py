"""Figures for papers: sample rows as in the paper's Fig. 1 and Fig. 2, loss curves, the score table; PNG or PDF."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ris_pipeline.errors import RisError
from ris_pipeline.report.charts import PRINT, Curves, plot_curves, prepare_axes, title_of
from ris_pipeline.report.panels import Column, Panel, Row
from ris_pipeline.report.tiles import blend_panel
from ris_pipeline.scoring.scores import Score

FORMATS = (".png", ".pdf")
_DPI = 200
_TILE = 1.35  # inches, the width of a picture
_GAP = 0.04  # inches between pictures
_CAPTION = 0.25  # inches above each row, for its sentence, and below the last one for the titles
_TEXT: dict[str, Any] = {"fontsize": 9, "color": PRINT.ink}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as the PNG or PDF that the name says; whole, or not at all. RisError where that fails."""
    check_format(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    # Without the date the same figure is the same file.
    metadata = {"CreationDate": None} if path.suffix.lower() == ".pdf" else {"Software": None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # TrueType: submission systems refuse matplotlib's usual Type 3 fonts.
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(unfinished, format=path.suffix.lower().removeprefix("."), dpi=_DPI, metadata=metadata)
        unfinished.replace(path)
    except OSError as error:
        raise RisError(f"{path}: cannot write the figure there: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def check_format(path: Path) -> None:
    """RisError where the file's name does not end in one of FORMATS."""
    if path.suffix.lower() not in FORMATS:
        raise RisError(
            f"{path}: a figure is written as {' or '.join(FORMATS)}; name it {path.with_suffix('.pdf').name}"
        )


def draw_qualitative(rows: Sequence[Row], columns: Sequence[Column]) -> Figure:
    """A row per sample: its sentence, its image and what each column shows; empty columns say why."""
    heights = [_TILE * row.image.shape[0] / row.image.shape[1] for row in rows]
    titles = ["Image", *(column.title for column in columns)]
    width = len(titles) * (_TILE + _GAP) - _GAP
    height = sum(heights) + _CAPTION * (len(rows) + 1)
    figure = Figure(figsize=(width, height), facecolor="white")
    top = height
    for row, tile in zip(rows, heights, strict=True):
        # Foreign text: a dollar sign in it begins no formula.
        figure.text(
            0, (top - 0.6 * _CAPTION) / height, row.sample.expression.sentence, va="center", parse_math=False, **_TEXT
        )
        top -= _CAPTION + tile
        for k, column in enumerate([None, *columns]):
            axes = figure.add_axes((k * (_TILE + _GAP) / width, top / height, _TILE / width, tile / height))
            axes.set_axis_off()
            if column is None:
                axes.imshow(row.image, aspect="auto")
            else:
                _show_panel(axes, row, column)
    for k, title in enumerate(titles):
        figure.text((k * (_TILE + _GAP) + _TILE / 2) / width, 0.4 * _CAPTION / height, title, ha="center", **_TEXT)
    return figure


def _show_panel(axes: Axes, row: Row, column: Column) -> None:
    panel: Panel = row.panels[column.key]
    picture = blend_panel(row.image, panel, column)
    if picture is None:
        axes.imshow(np.full_like(row.image, 240), aspect="auto")
        height, width = row.image.shape[:2]
        words = panel.note.replace(" ", "\n", 1) if len(panel.note) > 14 else panel.note
        axes.text(width / 2, height / 2, words, ha="center", va="center", fontsize=6, color=PRINT.muted, wrap=True)
    else:
        axes.imshow(picture, aspect="auto")


def draw_all_curves(curves: Mapping[str, Curves]) -> Figure:
    """The losses of each training, side by side, {title: curves}."""
    figure = Figure(figsize=(4.0 * len(curves), 3.0), layout="constrained", facecolor="white")
    for axes, (title, own) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        prepare_axes(axes, PRINT)
        plot_curves(axes, own, PRINT)
        axes.set_title(title, fontsize=10, color=PRINT.ink, loc="left", pad=36)  # above two lines of legend
    return figure


def draw_table(scores: Sequence[Score], metrics: Sequence[str]) -> Figure:
    """The score table: percent ± half of the 95 % interval, the paper's figure in brackets where it has one."""
    header = ["", "split", "sentences", *(title_of(metric) for metric in metrics)]
    cells = [
        [one.row.label, one.split, f"{one.n_sentences:,}", *(_cell(one, metric) for metric in metrics)]
        for one in scores
    ]
    widths = [max(len(line[k]) for line in [header, *cells]) + 2 for k in range(len(header))]
    figure = Figure(figsize=(0.085 * sum(widths), 0.24 * (len(cells) + 1) + 0.1), facecolor="white")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_axis_off()
    table = axes.table(
        cellText=[header, *cells], colWidths=[width / sum(widths) for width in widths],
        cellLoc="right", bbox=Bbox([[0, 0], [1, 1]]), edges="horizontal",
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(8.5)
    for (i, k), cell in table.get_celld().items():
        ends_group = i == 0 or i == len(cells) or (cells[i - 1][1] != cells[i][1])
        cell.visible_edges = "B" if ends_group else ""
        cell.set_linewidth(0.8)
        cell.set_text_props(ha="left" if k < 2 else "right", color=PRINT.ink, weight="bold" if i == 0 else "normal")
    return figure


def _cell(score: Score, metric: str) -> str:
    estimate = score.metrics.get(metric)
    if estimate is None:
        return "–"
    half = (estimate.ci_high - estimate.ci_low) / 2
    paper = f" [{score.paper[metric]:.2f}]" if metric in score.paper else ""
    return f"{estimate.value:.1f} ±{half:.1f}{paper}"
