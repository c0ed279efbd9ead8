"""`ris status`: the artifacts of a data set as a tree of what reads what: fresh, stale, running or missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ris_pipeline.errors import RisError
from ris_pipeline.process.units import format_duration, format_size
from stages.console import align, emit
from stages.context import Output, Places, open_context

if TYPE_CHECKING:
    from ris_pipeline.chain.status import StatusRow

HEADER = ("artifact", "state", "finished", "time", "size", "digest", "why")


def run(
    places: Places,
    output: Output,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare checksums.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Verify; take out what is damaged, to make it again.")
    ] = False,
) -> None:
    """Show what is fresh, stale and why, running or missing.

    Reads:    the manifests of runs/<dataset>/; with --verify every file
    Writes:   stdout: a tree; with --repair artifacts without their damaged files
    Example:  ris status --dataset refcoco
    """
    from ris_pipeline.chain import status

    context = open_context(places, output=output)
    damages = status.find_damages(context) if verify or repair else {}
    if repair:
        damages = status.repair(context, damages)
    rows = status.list_status(context, damages)
    table = [HEADER, *(_cells(branch, row) for branch, row in status.arrange(rows))]
    emit(output, align(table), [asdict(row) for row in rows])
    damaged = [row.path for row in rows if row.state == "damaged"]
    if damaged:
        remedy = "what could be mended has been" if repair else "`ris status --repair` mends what can be mended"
        raise RisError(f"damaged: {', '.join(damaged)}; {remedy}")


def _cells(branch: str, row: StatusRow) -> list[str]:
    """Return the row as cells, with the `branch` of the tree before its name and at most three reasons."""
    seconds = "" if row.seconds is None else format_duration(row.seconds)
    size = "" if row.bytes is None else format_size(row.bytes)
    more = [f"and {len(row.why) - 3} more"] if len(row.why) > 3 else []
    why = "; ".join([*row.why[:3], *more])
    return [branch + row.artifact, row.state, row.finished[:16], seconds, size, row.digest, why]
