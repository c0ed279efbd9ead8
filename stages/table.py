"""`ris table N`: a table of the paper, with our latest scores beside its figures where they exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ris_pipeline.process.console import Console
from stages.console import align, emit
from stages.context import Output

if TYPE_CHECKING:
    from ris_pipeline.scoring.tables import Table


def run(
    output: Output,
    number: Annotated[int, typer.Argument(min=1, max=7, metavar="N", help="Number of the table.")],
    runs: Annotated[Path, typer.Option(help="Folder that holds the artifacts.")] = Path("runs"),
) -> None:
    """Print a table of the paper, with our latest scores.

    Reads:    scores of the paper's data sets below runs/, where there are any
    Writes:   stdout: the table
    Example:  ris table 1
    """
    from ris_pipeline.scoring.tables import build_table, read_scores

    table = build_table(number)
    here = [read_scores(runs, row, table.columns) for row in table.rows]
    if partial := list(dict.fromkeys(line for _, lines in here for line in lines)):
        Console(quiet=output.quiet).say(f"left out, as only a part of the split is scored: {', '.join(partial)}")
    rows = [
        {"row": row.name, "paper": dict(row.paper), "here": found}
        for row, (found, _) in zip(table.rows, here, strict=True)
    ]
    columns = [column.title for column in table.columns]
    emit(output, _render(table, rows), {"table": number, "title": table.title, "columns": columns, "rows": rows})


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
