"""`ris propose`: class-agnostic masks of the images of train by a SAM → a JSON for each image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.console import emit
from stages.context import Device, Making, Output, Places, open_context


def run(
    places: Places,
    making: Making,
    output: Output,
    out: Annotated[Path, typer.Option(help="Folder to write to; what it has is kept.")],
    sam: Annotated[
        str, typer.Option(metavar="<str>", help="A SAM of transformers: a folder or a tag of the hub.")
    ] = "facebook/sam-vit-base",
    points: Annotated[int, typer.Option(min=1, help="SAM is asked at N×N points.", metavar="N")] = 32,
    device: Device = "auto",
) -> None:
    """Propose masks of objects, whatever they are, for `ris make-pseudolabels --proposals`.

    Reads:    images of the split train; --sam
    Writes:   <out>/<image>.json: COCO run lengths
    Example:  ris propose --dataset refcoco --out proposals
    """
    from ris_pipeline.chain.propose import propose

    context = open_context(places, making, output, device=device)
    n_written = propose(context, out, sam, points)
    if not context.dry_run:
        emit(output, f"{out}: {n_written:,} files written", {"out": str(out), "written": n_written})
