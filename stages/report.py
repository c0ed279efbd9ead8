"""`ris report`: everything that the stages of a data set made → one HTML file that needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ris_pipeline.artifacts.layout import REPORT
from stages.console import emit
from stages.context import Device, Making, Output, Places, Seed, Splits, open_context


def run(
    places: Places,
    making: Making,
    output: Output,
    split: Splits = None,
    samples: Annotated[int | None, typer.Option(min=0, help="Sentences in the gallery; 200 if left out.")] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write a copy to this file.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Show in one HTML file what the stages made and scored.

    Reads:    all that the stages left in runs/<dataset>/; images, boxes, masks
    Writes:   runs/<dataset>/report/: report.html
    Example:  ris report --dataset refcoco --split val --out report.html
    """
    from ris_pipeline.report.make import copy_report, make_report

    settings = None if samples is None else {"samples": samples}
    report = make_report(open_context(places, making, output, seed=seed, device=device), settings, splits=split)
    if report is not None and not making.dry_run:
        if out is not None:
            copy_report(report, out)
        path = str(out or report.path / REPORT)
        emit(output, path, {**report.manifest, "path": path})
