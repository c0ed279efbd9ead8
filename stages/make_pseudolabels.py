"""`ris make-pseudolabels`: the selected response maps of the train split → one mask PNG per ref."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ris_pipeline.methods import TRIS
from ris_pipeline.process.workers import WORKERS
from stages.console import show
from stages.context import Device, Making, MethodName, Output, Places, Round, Seed, Workers, open_context


def run(
    places: Places,
    making: Making,
    output: Output,
    refine: Annotated[
        bool | None,
        typer.Option("--refine/--no-refine", help="By inter-pixel relations, or threshold only; else as configured."),
    ] = None,
    proposals: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Choose among class-agnostic masks, <image>.json each, instead: other supervision."
        ),
    ] = None,
    method: MethodName = TRIS,
    round: Round = 1,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = WORKERS,
) -> None:
    """Turn the selected response maps into masks.

    Reads:    responses of the split train, later step2; its images; --proposals
    Writes:   runs/<dataset>/pseudolabels/: <ref_id>.png, contact-sheet.png
    Example:  ris make-pseudolabels --dataset refcoco --refine
    """
    from ris_pipeline.chain.pseudolabels import make_pseudolabels

    context = open_context(places, making, output, seed=seed, device=device, workers=workers)
    labels = make_pseudolabels(context, refine=refine, method=method, round=round, proposals=proposals)
    show(output, labels)
