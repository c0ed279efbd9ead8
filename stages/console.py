"""How a command prints its results: on stdout, as text or as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.process.console import is_silent
from stages.context import Output

TABLE_WIDTH = 120  # columns


def emit(output: Output, text: str, value: Any) -> None:
    """Print a result: `text`, or `value` as one line of JSON with --json."""
    if is_silent():
        return
    try:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False) if output.json else text, flush=True)
    except BrokenPipeError:  # the reader has seen enough, as `head` has; what is left must not fail at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(output: Output, artifact: Artifact | None) -> None:
    """Print where an artifact lies, or its manifest with --json; nothing where a dry run has made none."""
    if artifact is not None:
        emit(output, str(artifact.path), {**artifact.manifest, "path": str(artifact.path)})


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return the cells as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def draw_table(titles: Sequence[str], sections: Sequence[Sequence[Sequence[str]]], n_words: int) -> str:
    """Return a table with a line below its titles and between its sections; the first `n_words` columns are words."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for k, title in enumerate(titles):
        table.add_column(title, justify="left" if k < n_words else "right", no_wrap=True)
    for section in sections:
        for cells in section:
            table.add_row(*cells)
        table.add_section()
    console = Console(width=TABLE_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(table)
    # The box has an empty line above the header and below the last row.
    return "\n".join(line.rstrip() for line in capture.get().splitlines()[1:-1])
