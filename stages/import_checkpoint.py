"""`ris import-checkpoint`: a released checkpoint → an artifact, as if its stage had made it here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.console import show
from stages.context import Making, Output, Places, open_context


def run(
    places: Places,
    making: Making,
    output: Output,
    file: Annotated[Path, typer.Argument(help="A checkpoint of TRIS (or its name: tris-refcoco), of IRNet or CLIP.")],
    out: Annotated[
        Path | None, typer.Option(help="New folder to write to; if left out, it becomes an artifact of --dataset.")
    ] = None,
) -> None:
    """Turn a released checkpoint into an artifact.

    Reads:    a .pth of TRIS or IRNet, or OpenAI's .pt; it executes nothing
    Writes:   <out>/, or runs/<dataset>/step1/ or step2/: model.safetensors
    Example:  ris import-checkpoint stage1.pth --dataset refcoco
    """  # fmt: skip
    from ris_pipeline.chain.imports import import_checkpoint

    context = open_context(places, making=making, output=output)
    show(output, import_checkpoint(context, file, out=out))
