"""`ris predict`: images and sentences → masks, overlays and maps as PNG files, and predictions.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ris_pipeline.artifacts.layout import ROUNDS
from ris_pipeline.errors import RisError
from ris_pipeline.methods import TRIS
from ris_pipeline.process.ranks import agree
from stages.console import emit
from stages.context import (
    AtTestTime,
    Device,
    DryRun,
    Making,
    MethodName,
    Output,
    Places,
    Precision,
    RawOrientation,
    open_context,
)


def run(
    places: Places,
    output: Output,
    at_test_time: AtTestTime,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... TEXT...",
            help="Images or folders, then sentences in quotes; or a table (CSV, JSONL) of both, - is stdin.",
        ),
    ],
    more: Annotated[
        list[Path] | None, typer.Option("--image", metavar="<path>", help="Another image or folder; repeatable.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint of TRIS, as a file or by name (tris-refcoco), or an artifact."),
    ] = None,
    method: MethodName = TRIS,
    round: Annotated[
        int | None,
        typer.Option(min=1, max=max(ROUNDS), help="The Step-2 of this round of labels, otherwise of the last."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("predictions"),
    save_map: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Save the map too: float32 (H, W) at the image's size.")
    ] = None,
    raw_orientation: RawOrientation = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    dry_run: DryRun = False,
) -> None:
    """Segment what each sentence says in images.

    Reads:    --checkpoint, or step2, or step1 where there is no step2; images
    Writes:   <out>/: <image>-<k>-mask, -overlay, -map.png; predictions.json
    Example:  ris predict photo.jpg "the dog on the left" "the cat" --out masks
    """
    from ris_pipeline.chain.predict import parse_arguments, predict_files

    wanted = agree(lambda: parse_arguments(arguments, more or ()))  # the standard input can be read once
    context = open_context(places, Making(dry_run=dry_run), output, device=device, precision=precision)
    written = predict_files(
        context, wanted, out,
        checkpoint=checkpoint, method=method, round=round, save_map=save_map, upright=not raw_orientation,
        test_time=at_test_time.chosen,
    )  # fmt: skip
    if written.records or (output.json and not dry_run):
        emit(output, "\n".join(written.files), written.records)
    for line in written.failures:
        raise RisError(line)
