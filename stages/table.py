"""`ris table N`: a table of the paper, with our latest scores beside its figures where they exist."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ris_pipeline.artifacts.find import find_latest, find_scores
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import SCORES
from ris_pipeline.scoring.tables import Column, Table, TableRow, build_table
from stages.options import StageOptions, align, emit, say


def run(options: StageOptions, number: int) -> None:
    """Print the table of that number, 1 to 7."""
    table = build_table(number)
    rows = [
        {"row": row.name, "paper": dict(row.paper), "here": _our_scores(options, row, table.columns)}
        for row in table.rows
    ]
    columns = [column.title for column in table.columns]
    if partial := [name for row in table.rows for name in _list_partial(options, row, table.columns)]:
        say(options, f"left out, of a part of their split only: {', '.join(dict.fromkeys(partial))}")
    emit(options, _render(table, rows), {"table": number, "title": table.title, "columns": columns, "rows": rows})


def _our_scores(options: StageOptions, row: TableRow, columns: Sequence[Column]) -> dict[str, float]:
    """Our scores of a row in percent, by column; those that were never computed are left out."""
    found = {}
    for column in columns:
        artifact = _find(options, row, column) if row.scored and column.dataset else None
        if artifact is not None:
            scores = _read(artifact)
            if column.metric in scores["metrics"] and not scores.get("partial"):
                found[column.title] = float(scores["metrics"][column.metric]["value"])
    return found


def _list_partial(options: StageOptions, row: TableRow, columns: Sequence[Column]) -> list[str]:
    """What of the row was scored on a part of its split: it has no place beside the paper's figures."""
    found = []
    for column in columns:
        artifact = _find(options, row, column) if row.scored and column.dataset else None
        part = _read(artifact).get("partial") if artifact is not None else None
        if part:
            share = f"{part['sentences']:,} of {part['expected']:,} sentences"
            found.append(f"{row.name} on {column.dataset} {column.split} ({share})")
    return found


def _read(artifact: Artifact) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((artifact.path / SCORES).read_text(encoding="utf-8"))
    return scores


def _find(options: StageOptions, row: TableRow, column: Column) -> Artifact | None:
    if row.settings:
        return find_scores(options.runs, column.dataset, row.scored, column.split, row.settings)
    return find_latest(options.runs, column.dataset, "scores", scored=row.scored, split=column.split)


def _render(table: Table, rows: Sequence[Mapping[str, Any]]) -> str:
    titles = [column.title.replace("/", " ").split(" ") for column in table.columns]
    lines = [["", *(title[k] if k < len(title) else "" for title in titles)] for k in range(max(map(len, titles)))]
    for row in rows:
        lines.append([row["row"], *_cells(table, row["paper"])])
        if row["here"]:
            lines.append(["  here", *_cells(table, row["here"])])
    return f"{table.title}\n{align(lines)}"


def _cells(table: Table, values: Mapping[str, float]) -> list[str]:
    # Scores have two decimals in the paper; ms and rounded costs are printed as they are.
    return [
        "" if column.title not in values
        else f"{values[column.title]:.2f}" if column.metric
        else f"{values[column.title]:g}"
        for column in table.columns
    ]  # fmt: skip
