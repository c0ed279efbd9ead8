"""`ris make-pseudolabels`: the selected response maps of the train split → one mask PNG per ref."""

from __future__ import annotations

from typing import Annotated

import typer

from ris_pipeline.methods import TRIS
from stages.console import show
from stages.context import Compute, Making, MethodName, Output, Places, open_context


def run(
    places: Places,
    compute: Compute,
    making: Making,
    output: Output,
    refine: Annotated[bool, typer.Option(help="Refine by inter-pixel relations, or only threshold.")] = True,
    method: MethodName = TRIS,
) -> None:
    """Turn the selected response maps into masks.

    Reads:    responses of the split train; its images
    Writes:   runs/<dataset>/pseudolabels/: <ref_id>.png, contact-sheet.png
    Example:  ris make-pseudolabels --dataset refcoco --refine
    """
    from ris_pipeline.chain.pseudolabels import make_pseudolabels

    show(output, make_pseudolabels(open_context(places, compute, making, output), refine=refine, method=method))
