"""The printed forms of a table, on cells that one can check by eye."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from math import nan

import pytest

from ris_pipeline.experiments.file import Entry, Experiment
from ris_pipeline.experiments.table import Cell, Table, compare, render, to_json

EXPERIMENT = Experiment(
    title="two rows",
    columns=["refcoco/val miou", "gmac"],
    rows=[
        Entry(name="50_%", scored="step1", paper=[30.25, nan]),
        Entry(name="b", scored="step2", together=True),
        Entry(name="c", scored="step2"),
    ],
    source="Table 9",
    name="two",
)


def make(first: Cell | None, second: Cell | None, third: Cell | None = None) -> Table:
    cost = [Cell(value, None, 1, partial=False) for value in (12.5, 20.0, 30.0)]
    rows = {
        entry.name: [cell, own] for entry, cell, own in zip(EXPERIMENT.rows, (first, second, third), cost, strict=True)
    }
    return Table(EXPERIMENT, EXPERIMENT.columns, rows)


WHOLE = make(Cell(40.04, 1.26, 1, partial=False), Cell(41.0, 2.0, 1, partial=False))
PART = make(Cell(40.04, 1.26, 1, partial=False), Cell(99.0, 2.0, 1, partial=True), Cell(39.0, 1.0, 1, partial=False))


def align(lines: list[list[str]]) -> str:
    return "\n".join("|".join(line) for line in lines)


def test_text():
    assert render(WHOLE, "text", align).splitlines() == [
        "two rows",
        "|refcoco/val miou|paper|gmac|supervision|sentences",
        "50_%|40.0 ±1.3|30.25|12.50|text|one",
        "b|41.0 ±2.0||20.00|text|several",
        "c|–||30.00|text|one",
        "percent ± half of the 95 % interval (bootstrap over refs)",
        "paper: Table 9",
    ]


def test_what_it_has_taken_is_told():
    told = replace(WHOLE, hours=1.2345, devices=("cpu", "cuda"))
    line = "1.23 hours on cpu, cuda: all stages behind it, each artifact once"
    assert render(told, "text", align).splitlines()[-1] == line
    assert render(told, "latex", align).splitlines()[-1] == f"% {line}"
    assert (to_json(told)["hours"], to_json(told)["devices"]) == (1.2345, ("cpu", "cuda"))


def test_the_best_is_bold_the_dearest_is_not():
    rows = render(WHOLE, "markdown", align).splitlines()[2:]
    assert rows[0] == "|  | refcoco/val miou | paper | gmac | supervision | sentences |"
    assert rows[2:5] == [
        "| 50_% | 40.0 ±1.3 | 30.25 | **12.50** | text | one |",
        "| b | **41.0 ±2.0** |  | 20.00 | text | several |",
        "| c | – |  | 30.00 | text | one |",
    ]


def test_a_part_of_a_split_is_starred_and_cannot_be_best():
    lines = render(PART, "markdown", align).splitlines()
    assert "| b | 99.0 ±2.0* |  | 20.00 | text | several |" in lines
    assert "| 50_% | **40.0 ±1.3** | 30.25 | **12.50** | text | one |" in lines
    assert any(line.startswith("* partial") for line in lines)


def test_latex_escapes_what_latex_would_read():
    lines = render(WHOLE, "latex", align).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrll}"
    assert r"50\_\% & 40.0 $\pm$1.3 & 30.25 & \textbf{12.50} & text & one \\" in lines
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    named = replace(EXPERIMENT, rows=[replace(EXPERIMENT.rows[2], name="R&D #1")])
    table = replace(WHOLE, experiment=named, cells={"R&D #1": WHOLE.cells["c"]})
    assert r"R\&D \#1 & – & 30.00 & text & one \\" in render(table, "latex", align).splitlines()


def test_csv_has_full_numbers():
    rows = list(csv.DictReader(io.StringIO(render(WHOLE, "csv", align))))
    assert len(rows) == 6
    assert rows[0] == {
        "row": "50_%", "column": "refcoco/val miou", "value": "40.04", "spread": "1.26", "seeds": "1",
        "partial": "False", "paper": "30.25", "supervision": "text", "sentences": "one",
    }  # fmt: skip
    assert rows[4]["value"] == ""


def test_several_seeds_are_said():
    table = make(Cell(40.0, 1.0, 3, partial=False), Cell(41.0, 1.0, 2, partial=False))
    notes = render(table, "text", align).splitlines()[5:]
    assert notes[0] == "mean ± standard deviation over 3 seeds"
    assert "2 of them only" in notes[1]


def test_json_keeps_what_is_there():
    found = to_json(PART)
    assert found["rows"][1]["here"]["refcoco/val miou"] == {
        "value": 99.0, "spread": 2.0, "n_seeds": 1, "partial": True,
    }  # fmt: skip
    assert found["rows"][0]["paper"] == {"refcoco/val miou": 30.25}
    assert "refcoco/val miou" not in to_json(WHOLE)["rows"][2]["here"]


def test_compared_with_itself_made_again():
    again = make(Cell(41.5, 0.5, 1, partial=False), Cell(41.0, 2.0, 1, partial=False))
    assert compare(WHOLE, again) == [
        ("50_%", "refcoco/val miou", 40.04, 41.5, 1.26),
        ("b", "refcoco/val miou", 41.0, 41.0, 2.0),
    ]


@pytest.mark.parametrize("column", [0, 1])
def test_nothing_is_best_of_one(column):
    table = Table(EXPERIMENT, EXPERIMENT.columns, {"b": [Cell(1.0, None, 1, partial=False)] * 2})
    assert table.best(column) is None
