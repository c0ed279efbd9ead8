"""`ris export`: a trained Step-1 or Step-2 as one ONNX or torch.export file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stages.console import emit
from stages.context import Making, Output, Places, open_context


def run(
    places: Places,
    output: Output,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="An artifact, or a released .pth file; otherwise step2, or step1.")
    ] = None,
    form: Annotated[
        Literal["onnx", "torch"], typer.Option("--format", help="onnx, or torch for torch.export's .pt2.")
    ] = "onnx",
) -> None:
    """Write a network and its rule as one file, from image and token ids to the map, compared with torch before.

    Reads:    --checkpoint, or step2, or step1 where there is no step2
    Writes:   --out
    Example:  ris export --out ris.onnx
    """
    from ris_pipeline.chain.checkpoints import choose_checkpoint, load_segmenter
    from ris_pipeline.export import export

    context = open_context(places, Making(), output, device="cpu")
    responder = load_segmenter(context, choose_checkpoint(context, checkpoint)).responder
    difference = export(responder, out, form)
    emit(output, f"{out}: differs from torch by {difference:.1e} at most", {"out": str(out), "difference": difference})
