"""The curve of a setting, read back from the figure."""

from __future__ import annotations

from math import nan

import pytest

from ris_pipeline.errors import RisError
from ris_pipeline.experiments.curve import draw_sweep
from ris_pipeline.experiments.file import Entry, Experiment
from ris_pipeline.experiments.table import Cell, Table

EXPERIMENT = Experiment(
    title="three rates",
    columns=["refcoco/val miou", "gmac", "refcoco/val pointit"],
    rows=[
        Entry(name="1", scored="step1", paper=[30.0, nan, 60.0]),
        Entry(name="2", scored="step1", paper=[31.0, nan, nan]),
        Entry(name="3", scored="step1"),
    ],
    axis="rate",
    name="rates",
)
MIOU = (Cell(20.0, 1.0, 1, partial=False), None, Cell(22.0, 2.0, 1, partial=True))


def make(miou: tuple[Cell | None, ...]) -> Table:
    cells = {entry.name: [cell, None, None] for entry, cell in zip(EXPERIMENT.rows, miou, strict=True)}
    return Table(EXPERIMENT, EXPERIMENT.columns, cells)


def test_measured_paper_and_partial_values():
    miou, pointit = draw_sweep(make(MIOU)).axes
    drawn = [(line.get_label(), (list(line.get_xdata()), list(line.get_ydata()))) for line in miou.get_lines()]
    lines = dict(drawn)
    assert lines["paper"] == ([0, 1], [30.0, 31.0])
    assert lines["of a part of the split"] == ([2], [22.0])
    assert ([0, 2], [20.0, 22.0]) in [points for _, points in drawn]
    assert [text.get_text() for text in miou.get_legend().get_texts()].count("of a part of the split") == 1
    assert (miou.get_title(), miou.get_xlabel()) == ("refcoco/val miou", "rate")
    assert [list(line.get_ydata()) for line in pointit.get_lines() if line.get_label() == "paper"] == [[60.0]]


def test_nothing_to_draw():
    with pytest.raises(RisError, match="nothing is made yet"):
        draw_sweep(make((None, None, None)))
