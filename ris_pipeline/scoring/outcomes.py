"""What `ris score` leaves of a row: its scores, and a table of outcomes with one CSV line per expression."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ris_pipeline.errors import RisError
from ris_pipeline.scoring.metrics import Outcome

_COLUMNS = ["ref_id", "sent_id", "weight", "point_it", "point_m", "intersection", "union", "box_iou"]
_WITH_ABSENT = [*_COLUMNS, "exists", "is_empty"]  # where some sentences are about nothing in their image


def save_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write one CSV line per outcome, a column per field of Outcome; without ground truth an empty cell.

    `exists` and `is_empty` are written only where not all sentences mean something in their image.
    """
    columns = _COLUMNS if all(outcome.exists for outcome in outcomes) else _WITH_ABSENT
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for outcome in outcomes:
            # bools as 0 and 1: spreadsheets average them
            writer.writerow({k: int(v) if isinstance(v, bool) else v for k, v in asdict(outcome).items()})


def load_outcomes(path: Path) -> list[Outcome]:
    """Return the outcomes that `save_outcomes` wrote; RisError where the file is missing or a line is bad."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames not in (_COLUMNS, _WITH_ABSENT):
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
            is_empty=bool(int(row.get("is_empty", 0))),
            exists=bool(int(row.get("exists", 1))),
        )
    except (TypeError, ValueError) as error:
        raise RisError(f"{path}: line {line} is not an outcome ({error}); run `ris score` again") from error
