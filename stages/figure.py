"""`ris figure`: sample rows, loss curves or the curve of a setting → a PNG or PDF for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ris_pipeline.errors import RisError
from stages.console import emit
from stages.context import Device, DryRun, Making, Output, Places, Seed, Splits, open_context
from stages.experiment import open_experiment


def run(
    places: Places,
    output: Output,
    kind: Annotated[Literal["qualitative", "curves", "sweep"], typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File to write, .png or .pdf.")],
    split: Splits = None,
    ref: Annotated[list[int] | None, typer.Option(metavar="<int>", help="Id of a ref to show; repeatable.")] = None,
    experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a sweep: table4, table5, or a path to a .toml file.")
    ] = None,
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
    if kind == "sweep":
        from ris_pipeline.experiments.curve import draw_sweep
        from ris_pipeline.experiments.table import build_table

        if experiment is None:
            raise RisError("a sweep is of an experiment: --experiment table5, say")
        words = {"data_root": places.data_root, "runs": places.runs, "config": places.config, "set": places.set}
        figure = draw_sweep(build_table(*open_experiment(experiment, places.dataset, None, output, words)))
    else:
        context = open_context(places, Making(dry_run=dry_run), output, seed=seed, device=device)
        drawn = draw_figure(context, kind, splits=split, refs=ref or ())
        if drawn is None:
            return
        figure = drawn
    save_figure(figure, out)
    emit(output, str(out), {"figure": kind, "path": str(out)})
