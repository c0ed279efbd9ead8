"""`ris figure`: sample rows or loss curves → a PNG or PDF for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stages.console import emit
from stages.context import Device, DryRun, Making, Output, Places, Seed, Splits, open_context


def run(
    places: Places,
    output: Output,
    kind: Annotated[Literal["qualitative", "curves"], typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File to write, .png or .pdf.")],
    split: Splits = None,
    ref: Annotated[list[int] | None, typer.Option(metavar="<int>", help="Id of a ref to show; repeatable.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
) -> None:
    """Draw sample rows or curves for a paper.

    Reads:    what the stages left in runs/<dataset>/; images, boxes, masks
    Writes:   the file of --out
    Example:  ris figure qualitative --ref 12 --ref 40 --out rows.pdf
    """
    from ris_pipeline.report.figures import check_format, save_figure
    from ris_pipeline.report.make import draw_figure

    check_format(out)
    context = open_context(places, Making(dry_run=dry_run), output, seed=seed, device=device)
    figure = draw_figure(context, kind, splits=split, refs=ref or ())
    if figure is not None:
        save_figure(figure, out)
        emit(output, str(out), {"figure": kind, "path": str(out)})
