"""`ris dump-responses`: a trained Step-1, or a compared method → the score grid of every sentence."""

from __future__ import annotations

from typing import Annotated

import typer

from ris_pipeline.methods import TRIS
from stages.console import show
from stages.context import Device, Making, MethodName, Output, Places, Splits, open_context


def run(
    places: Places,
    making: Making,
    output: Output,
    split: Splits = None,
    prms: Annotated[
        bool | None, typer.Option("--prms/--no-prms", help="Select a map for each ref; if left out, as configured.")
    ] = None,
    method: MethodName = TRIS,
    device: Device = "auto",
) -> None:
    """Write each sentence's score grid and PRMS's choice.

    Reads:    step1; images and sentences of each split
    Writes:   runs/<dataset>/responses/: <split>.zarr
    Example:  ris dump-responses --dataset refcoco --split val
    """
    from ris_pipeline.chain.responses import dump_responses

    settings = None if prms is None else {"prms": prms}
    context = open_context(places, making, output, device=device)
    for artifact in dump_responses(context, settings, splits=split, method=method).values():
        show(output, artifact)
