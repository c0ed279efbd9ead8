"""`ris figure`: sample rows or loss curves → a PNG or PDF for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stages.console import emit
from stages.context import Compute, Making, Output, Places, Splits, open_context


def run(
    places: Places,
    compute: Compute,
    making: Making,
    output: Output,
    kind: Annotated[Literal["qualitative", "curves"], typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File to write, .png or .pdf.")],
    split: Splits = None,
    ref: Annotated[list[int] | None, typer.Option(metavar="<int>", help="Id of a ref to show; repeatable.")] = None,
) -> None:
    """Draw sample rows or curves for a paper.

    Reads:    what the stages left in runs/<dataset>/; images, boxes, masks
    Writes:   the file of --out
    Example:  ris figure qualitative --ref 12 --ref 40 --out rows.pdf
    """
    from ris_pipeline.report.figures import check_format, save_figure
    from ris_pipeline.report.make import draw_figure

    check_format(out)
    figure = draw_figure(open_context(places, compute, making, output), kind, splits=split, refs=ref or ())
    if figure is not None:
        save_figure(figure, out)
        emit(output, str(out), {"figure": kind, "path": str(out)})
