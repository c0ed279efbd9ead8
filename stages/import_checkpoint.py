"""`ris import-checkpoint`: a released checkpoint → an artifact, as if its stage had made it here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from stages.console import show
from stages.context import Making, Output, Places, choose_from, open_context

if TYPE_CHECKING:
    from ris_pipeline.networks.weights.released import Kind

KINDS = ("tris-step1", "tris-step2", "irn", "clip")


def run(
    places: Places,
    making: Making,
    output: Output,
    file: Annotated[Path, typer.Argument(help="A checkpoint of TRIS or IRNet, or a CLIP of OpenAI's.")],
    kind: Annotated[
        str | None,
        typer.Option(
            metavar=f"<{'|'.join(KINDS)}>",
            callback=choose_from(lambda: KINDS),
            help="What it is; its entries tell if left out.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for it; if left out, it becomes the --dataset's in --runs.")
    ] = None,
) -> None:
    """Turn a released checkpoint into an artifact.

    Reads:    a .pth of TRIS or IRNet, or OpenAI's .pt; it executes nothing
    Writes:   <out>/, or runs/<dataset>/step1/ or step2/: model.safetensors
    Example:  ris import-checkpoint stage1.pth --dataset refcoco
    """  # fmt: skip
    from ris_pipeline.chain.imports import import_checkpoint

    context = open_context(places, making=making, output=output)
    show(output, import_checkpoint(context, file, kind=cast("Kind | None", kind), out=out))
