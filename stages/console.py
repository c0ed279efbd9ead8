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


def emit(output: Output, text: str, value: Any) -> None:
    """Print a result: `text`, or `value` as one line of JSON with --json."""
    if is_silent():
        return
    try:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False) if output.json else text, flush=True)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does; what is left must not fail at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(output: Output, artifact: Artifact | None) -> None:
    """Print the path of an artifact, or its manifest with --json; nothing if a dry run has made none."""
    if artifact is not None:
        emit(output, str(artifact.path), {**artifact.manifest, "path": str(artifact.path)})


def align(rows: Sequence[Sequence[str]], n_words: int | None = None) -> str:
    """Return the cells as lines of aligned columns; after the first `n_words`, columns are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n_words is None or k < n_words else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def draw_table(titles: Sequence[str], sections: Sequence[Sequence[Sequence[str]]], n_words: int) -> str:
    """Return a table with a rule below its titles and a gap between its sections; `n_words` columns are words."""
    header, *lines = align([titles, *(row for section in sections for row in section)], n_words).splitlines()
    table = [header, "─" * max(map(len, (header, *lines)))]
    for section in sections:
        table += [*lines[: len(section)], ""]
        del lines[: len(section)]
    return "\n".join(table[:-1])
