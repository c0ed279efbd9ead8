"""`ris figure`: sample rows, loss curves or the curve of a setting → a PNG or PDF for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ris_pipeline.errors import RisError
from stages.console import emit
from stages.context import Device, DryRun, Making, Output, Places, Seed, Splits, open_context
from stages.experiment import open_experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(
    places: Places,
    output: Output,
    kind: Annotated[Literal["qualitative", "curves", "sweep"], typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File to write, .png or .pdf.")],
    experiment: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Whose curve, or whose rows as columns: table5, figure2, a .toml file."),
    ] = None,
    split: Splits = None,
    ref: Annotated[list[int] | None, typer.Option(metavar="<int>", help="Id of a ref to show; repeatable.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
) -> None:
    """Draw sample rows or curves for a paper.

    Reads:    what the stages left in runs/<dataset>/; images, boxes, masks
    Writes:   the file of --out
    Example:  ris figure qualitative figure2 --out figure2.pdf
    """
    from ris_pipeline.report.figures import check_format, save_figure

    check_format(out)
    if experiment is not None and kind == "curves":
        raise RisError(f"{experiment}: a sweep or qualitative rows are of an experiment; curves are of trainings")
    if experiment is not None:
        figure = None if dry_run else _draw_experiment(places, kind, experiment, split or [], ref or [], seed, device)
    elif kind == "sweep":
        raise RisError("a sweep is of an experiment: ris figure sweep table5, say")
    else:
        from ris_pipeline.report.make import draw_figure

        context = open_context(places, Making(dry_run=dry_run), output, seed=seed, device=device)
        figure = draw_figure(context, kind, splits=split, refs=ref or ())
    if figure is not None:
        save_figure(figure, out)
        emit(output, str(out), {"figure": kind, "path": str(out)})


def _draw_experiment(
    places: Places, kind: str, name: str, splits: list[str], refs: list[int], seed: int, device: str
) -> Figure:
    """Return the curve of an experiment, or the pictures of its rows' answers, side by side."""
    words = {"data_root": places.data_root, "runs": places.runs, "config": places.config, "set": places.set}
    experiment, points = open_experiment(name, places.dataset, None, Output(quiet=True), words, device=device)
    if kind == "sweep":
        from ris_pipeline.experiments.curve import draw_sweep
        from ris_pipeline.experiments.table import build_table

        return draw_sweep(build_table(experiment, points))
    from ris_pipeline.experiments.columns import find_columns
    from ris_pipeline.report.make import draw_columns

    if len(splits) > 1:
        raise RisError("--split: the rows of a figure of an experiment are of one split")
    own = [point for point in points if point.seed == points[0].seed]
    return draw_columns(own[0].context.vary(seed=seed), find_columns(own, splits[0] if splits else None), refs)
