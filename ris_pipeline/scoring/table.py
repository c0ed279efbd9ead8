"""Scores as a table to read, as JSON, and as one CSV line per expression."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from ris_pipeline.errors import RisError
from ris_pipeline.scoring.metrics import METRICS, Estimate, Outcome

_LABELS = {"pointit": "PointIt", "pointm": "PointM", "miou": "mIoU", "oiou": "oIoU", "box_iou": "box IoU"}
_COLUMNS = [field.name for field in fields(Outcome)]


@dataclass(frozen=True)
class ScoreRow:
    """One line of a table: what was scored (a stage or method), on which split, and its scores by metric."""

    name: str
    split: str
    estimates: dict[str, Estimate]


def format_estimate(estimate: Estimate) -> str:
    """Return "62.3 [60.5, 64.1]": percent and its 95 % interval."""
    return f"{estimate.value:.1f} [{estimate.ci_low:.1f}, {estimate.ci_high:.1f}]"


def build_table(rows: Sequence[ScoreRow], metrics: Sequence[str] = METRICS, title: str | None = None) -> Table:
    """Return a rich table: a line per row, a column per metric that some row has, "–" where it lacks."""
    shown = [metric for metric in metrics if any(metric in row.estimates for row in rows)]
    table = Table(title=title, caption="percent [95 % interval, bootstrap over refs]")
    table.add_column("scored")
    table.add_column("split")
    table.add_column("sentences", justify="right")
    for metric in shown:
        table.add_column(_LABELS.get(metric, metric.capitalize()), justify="right", no_wrap=True)
    for row in rows:
        n_expressions = max((estimate.n_expressions for estimate in row.estimates.values()), default=0)
        cells = [format_estimate(row.estimates[metric]) if metric in row.estimates else "–" for metric in shown]
        table.add_row(row.name, row.split, f"{n_expressions:,}", *cells)
    return table


def rows_to_json(rows: Sequence[ScoreRow]) -> list[dict[str, Any]]:
    """Return [{name, split, metrics: {metric: the fields of its Estimate}}], ready for json.dump."""
    return [
        {
            "name": row.name,
            "split": row.split,
            "metrics": {metric: asdict(estimate) for metric, estimate in row.estimates.items()},
        }
        for row in rows
    ]


def save_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write one CSV line per outcome, a column per field of Outcome; without ground truth an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for outcome in outcomes:
            # bools as 0 and 1: spreadsheets average them
            writer.writerow({k: int(v) if isinstance(v, bool) else v for k, v in asdict(outcome).items()})


def load_outcomes(path: Path) -> list[Outcome]:
    """Return the outcomes that `save_outcomes` wrote; RisError where the file is missing or a line is bad."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != _COLUMNS:
                raise RisError(f"{path}: the columns are not {', '.join(_COLUMNS)}; run `ris score` again")
            return [_parse_outcome(path, line, row) for line, row in enumerate(reader, start=2)]
    except OSError as error:
        raise RisError(f"{path}: cannot be read ({error.strerror}); run `ris score` first") from error


def _parse_outcome(path: Path, line: int, row: dict[str, str]) -> Outcome:
    def cell(name: str) -> int | None:
        return int(row[name]) if row[name] else None

    try:
        point_it, point_m = cell("point_it"), cell("point_m")
        return Outcome(
            ref_id=int(row["ref_id"]),
            sent_id=int(row["sent_id"]),
            weight=int(row["weight"]),
            point_it=None if point_it is None else bool(point_it),
            point_m=None if point_m is None else bool(point_m),
            intersection=cell("intersection"),
            union=cell("union"),
            box_iou=float(row["box_iou"]) if row["box_iou"] else None,
        )
    except (TypeError, ValueError) as error:
        raise RisError(f"{path}: line {line} is not an outcome ({error}); run `ris score` again") from error
