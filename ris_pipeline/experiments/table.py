"""An experiment's result as a table: measured beside expected, in text, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

from ris_pipeline.artifacts.find import load_artifact, walk_behind
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.errors import RisError
from ris_pipeline.experiments.file import COSTS, Entry, Experiment, where_of
from ris_pipeline.experiments.run import Point, read
from ris_pipeline.scoring.scores import Score

Format = Literal["text", "markdown", "latex", "csv", "json"]
HOUR = 3600  # seconds


@dataclass(frozen=True)
class Cell:
    """What was measured for one row and column."""

    value: float  # the mean over seeds; percent, millions, 10⁹ or hours
    spread: float | None  # standard deviation over seeds, or with one seed half of the 95 % interval
    n_seeds: int
    partial: bool  # of a part of the split only: no figure to stand beside the paper's

    def show(self, digits: int) -> str:
        """Return it as text, with a star where it is partial."""
        spread = "" if self.spread is None else f" ±{self.spread:.1f}"
        return f"{self.value:.{digits}f}{spread}{'*' if self.partial else ''}"


@dataclass(frozen=True)
class Table:
    """An experiment with what was measured: a cell for each row and column, None where nothing is there."""

    experiment: Experiment
    columns: list[str]
    cells: dict[str, list[Cell | None]]  # by the row's name
    made_by: tuple[dict[str, Any], ...] = ()  # host and libraries of the scores, each combination once
    hours: float = 0.0  # of all stages behind it, each artifact once
    devices: tuple[str, ...] = ()  # that computed them
    n_missing: int = 0  # rows that are not scored yet, counted for each split and seed

    def best(self, column: int) -> str | None:
        """Return the row with the best whole cell of a column; None where fewer than two are there."""
        whole = {name: row[column] for name, row in self.cells.items()}
        values = {name: cell.value for name, cell in whole.items() if cell is not None and not cell.partial}
        sign = -1 if self.columns[column] in COSTS else 1
        return max(values, key=lambda name: sign * values[name]) if len(values) > 1 else None


def build_table(experiment: Experiment, points: Sequence[Point], metrics: Sequence[str] = ()) -> Table:
    """Return the table of what has been made of the points.

    Its columns are those of the data sets that the points are of, and the costs. `metrics`: of each split, in place of
    those of the experiment's columns; those that no score has are left out, and RisError is raised where none is left.
    """
    measured = [(point, read(point)) for point in points]
    scored = {metric for _, scores in measured for score in scores.values() for metric in score.metrics}
    if metrics:
        shown = [metric for metric in metrics if metric in scored or not scored]
        if not shown:
            raise RisError(f"{experiment.name}: no score has {', '.join(metrics)}; it needs another ground truth")
        experiment = experiment.show(shown)
    behind = {path: artifact for point, scores in measured for path, artifact in _find_behind(point, scores).items()}
    datasets = {point.dataset for point in points}
    columns = [name for name in experiment.columns if name in COSTS or where_of(name)[0] in datasets]
    cells = {}
    for entry in experiment.rows:
        own = [(point, scores) for point, scores in measured if point.entry.name == entry.name]
        sizes = _measure_size(own[0][0]) if own and {"parameters", "gmac"} & set(columns) else {}
        cells[entry.name] = [sizes.get(column) or _measure_cell(column, own) for column in columns]
    made_by = [_read_environment(score) for _, scores in measured for score in scores.values()]
    distinct = {json.dumps(single, sort_keys=True): single for single in made_by}
    hours = sum(map(_hours_of, behind.values()))
    devices = {artifact.manifest["host"].get("device") for artifact in behind.values()} - {None}
    n_missing = sum(len(point.splits) - len(scores) for point, scores in measured)
    return Table(experiment, columns, cells, tuple(distinct.values()), hours, tuple(sorted(devices)), n_missing)


def _measure_size(point: Point) -> dict[str, Cell]:
    from ris_pipeline.experiments.cost import count_point  # which builds it, with torch

    size = count_point(point)
    if size is None:
        return {}
    return {
        name: Cell(number / unit, None, 1, partial=False)
        for name, number, unit in zip(("parameters", "gmac"), size, (1e6, 1e9), strict=True)
    }


def _measure_cell(column: str, own: Sequence[tuple[Point, Mapping[str, Score]]]) -> Cell | None:
    if column == "hours":
        hours = [sum(map(_hours_of, _find_behind(point, scores).values())) for point, scores in own if scores]
        return Cell(statistics.fmean(hours), None, len(hours), partial=False) if hours else None
    if column in COSTS:  # of a row without a network
        return None
    dataset, split, metric = where_of(column)
    found = [scores[split] for point, scores in own if point.dataset == dataset and split in scores]
    found = [score for score in found if metric in score.metrics]
    if not found:
        return None
    estimates = [score.metrics[metric] for score in found]
    if len(found) > 1:
        spread = statistics.stdev(estimate.value for estimate in estimates)
    else:
        spread = (estimates[0].ci_high - estimates[0].ci_low) / 2
    value = statistics.fmean(estimate.value for estimate in estimates)
    return Cell(value, spread, len(found), partial=any(score.partial for score in found))


def _read_environment(score: Score) -> dict[str, Any]:
    artifact = load_artifact(Path(score.path))
    return {} if artifact is None else {key: artifact.manifest[key] for key in ("host", "libraries")}


def _find_behind(point: Point, scores: Mapping[str, Score]) -> dict[Path, Artifact]:
    """Return the scores of a point and all that they are made from, as far as it is there, by folder."""
    own = [artifact for score in scores.values() if (artifact := load_artifact(Path(score.path)))]
    folder = point.context.runs / point.dataset
    behind = (found for artifact in own for found in walk_behind(folder, artifact.manifest["inputs"]))
    return {artifact.path: artifact for artifact in (*own, *behind)}


def _hours_of(artifact: Artifact) -> float:
    return float(artifact.manifest["timings"]["total"]) / HOUR


def render(table: Table, form: Format, align: Callable[[list[list[str]]], str]) -> str:
    """Return the table as text; `align` sets the rows of plain text."""
    if form == "csv":
        return _as_csv(table)
    lines = [["", *_titles(table), "supervision", "sentences"]]
    bold = {"text": "{}", "markdown": "**{}**", "latex": r"\textbf{{{}}}"}[form]
    for entry in table.experiment.rows:
        lines.append(
            [entry.name, *_cells(table, entry, bold), entry.supervision, "several" if entry.together else "one"]
        )
    notes = _notes(table)
    title = table.experiment.title
    if form == "text":
        return "\n".join([title, align(lines), *notes])
    if form == "markdown":
        rule = ["---"] + ["---:"] * (len(lines[0]) - 3) + ["---", "---"]
        rows = [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
        return "\n".join([f"{title}\n", *rows, *(f"\n{note}" for note in notes)])
    rows = [" & ".join(map(_escape, line)) + r" \\" for line in lines]
    return "\n".join([
        r"\begin{tabular}{l" + "r" * (len(lines[0]) - 3) + "ll}", r"\toprule", rows[0], r"\midrule", *rows[1:],
        r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in (title, *notes)),
    ])  # fmt: skip


def to_json(table: Table) -> dict[str, Any]:
    """Return the table as plain values."""
    rows = []
    for entry in table.experiment.rows:
        cells = zip(table.columns, table.cells[entry.name], strict=True)
        rows.append({
            "row": entry.name, "supervision": entry.supervision, "several_sentences": entry.together,
            "paper": _papers(table, entry),
            "here": {column: vars(cell) for column, cell in cells if cell is not None},
        })  # fmt: skip
    return {
        "experiment": table.experiment.name,
        "title": table.experiment.title,
        "rows": rows,
        "hours": table.hours,
        "devices": table.devices,
        "made_by": table.made_by,
    }


def _titles(table: Table) -> list[str]:
    return [title for column in table.columns for title in (column, *(["paper"] if _has_paper(table, column) else []))]


def _has_paper(table: Table, column: str) -> bool:
    return any(table.experiment.expected(entry, column) is not None for entry in table.experiment.rows)


def _papers(table: Table, entry: Entry) -> dict[str, float]:
    expected = {column: table.experiment.expected(entry, column) for column in table.columns}
    return {column: figure for column, figure in expected.items() if figure is not None}


def _cells(table: Table, entry: Entry, bold: str) -> list[str]:
    texts = []
    papers = _papers(table, entry)
    for k, column in enumerate(table.columns):
        cell = table.cells[entry.name][k]
        text = "–" if cell is None else cell.show(2 if column in COSTS else 1)
        texts.append(bold.format(text) if table.best(k) == entry.name else text)
        if _has_paper(table, column):
            texts.append(f"{papers[column]:g}" if column in papers else "")
    return texts


def _notes(table: Table) -> list[str]:
    cells = [cell for row in table.cells.values() for cell in row if cell is not None]
    seeds = sorted({cell.n_seeds for cell in cells if cell.spread is not None})
    notes = []
    if seeds:
        several = f"mean ± standard deviation over {seeds[-1]} seeds"
        notes.append(several if seeds[-1] > 1 else "percent ± half of the 95 % interval (bootstrap over refs)")
    if len(seeds) > 1:
        notes.append(f"some cells have {seeds[0]} of them only")
    if any(cell.partial for cell in cells):
        notes.append("* partial: of a part of the split only, not to be held against the paper's figure")
    if table.experiment.source:
        notes.append(f"paper: {table.experiment.source}")
    if table.hours:
        on = f" on {', '.join(table.devices)}" if table.devices else ""
        notes.append(f"{table.hours:.2f} hours{on}: all stages behind it, each artifact once")
    return notes


def _as_csv(table: Table) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "column", "value", "spread", "seeds", "partial", "paper", "supervision", "sentences"])
    for entry in table.experiment.rows:
        papers = _papers(table, entry)
        for column, cell in zip(table.columns, table.cells[entry.name], strict=True):
            measured = ["", "", "", ""] if cell is None else [cell.value, cell.spread, cell.n_seeds, cell.partial]
            together = "several" if entry.together else "one"
            writer.writerow([entry.name, column, *measured, papers.get(column, ""), entry.supervision, together])
    return file.getvalue().rstrip("\n")


def _escape(text: str) -> str:
    marks = {**{mark: f"\\{mark}" for mark in "%_&#"}, "±": r"$\pm$", "†": r"$^\dagger$"}
    return "".join(marks.get(letter, letter) for letter in text)


def compare(first: Table, second: Table) -> list[tuple[str, str, float, float, float]]:
    """Return (row, column, first value, second value, band) of every score that both tables have.

    The band is the larger of the spreads: a value that is made again is expected to differ by less.
    """
    found = []
    for name, row in first.cells.items():
        for column, old, new in zip(first.columns, row, second.cells[name], strict=True):
            if old is not None and new is not None and column not in COSTS:
                band = max((cell.spread for cell in (old, new) if cell.spread is not None), default=inf)
                found.append((name, column, old.value, new.value, band))
    return found
