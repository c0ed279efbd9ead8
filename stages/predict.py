"""`ris predict`: images and sentences → masks, overlays and maps as PNG files, and predictions.json."""

from __future__ import annotations

import glob
from collections.abc import Sequence
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
    from ris_pipeline.chain.predict import predict_files

    wanted = agree(lambda: parse_arguments(arguments, more or ()))  # the standard input can be read once
    context = open_context(places, Making(dry_run=dry_run), output, device=device, precision=precision)
    written = predict_files(
        context, wanted, out,
        checkpoint=checkpoint, method=method, round=round, save_map=save_map, upright=not raw_orientation,
        test_time=at_test_time.chosen,
    )  # fmt: skip
    if written.records or (output.json and not dry_run):
        emit(output, "\n".join(written.files), written.records)
    if written.failure is not None:
        raise RisError(written.failure)


def parse_arguments(arguments: Sequence[str], more: Sequence[Path] = ()) -> list[tuple[Path, list[str]]]:
    """Return the images and folders that the arguments name, each with its sentences.

    Either images, folders and patterns such as "photos/*.jpg", then sentences for all of them, or one table of image
    and sentence (see `read_table`), "-" for the standard input. `more`: images that come before. Raises RisError where
    images or sentences are missing, a sentence is empty, or an image is among the sentences.
    """
    from ris_pipeline.datasets.own import SUFFIXES, TABLES

    if len(arguments) == 1 and not more and (arguments[0] == "-" or Path(arguments[0]).suffix.lower() in TABLES):
        return _read_requests(Path(arguments[0]))
    words = [found for word in arguments for found in _expand(word)]
    n_least = 0 if more else 1
    is_image = [Path(word).suffix.lower() in SUFFIXES or Path(word).is_dir() for word in words]
    n_images = next((k for k, image in enumerate(is_image) if not image and k >= n_least), len(words))
    texts = words[n_images:]
    if not texts:
        raise RisError("no sentence to segment by; write what to segment after the images, in quotes")
    for number, (text, image) in enumerate(zip(texts, is_image[n_images:], strict=True), start=1):
        if not text.strip():
            raise RisError(f"sentence {number} is empty; write what to segment, in quotes")
        if image:
            raise RisError(f"{text!r} is an image, not a sentence; images come first, or each behind --image")
    return [(image, texts) for image in (*more, *map(Path, words[:n_images]))]


def _read_requests(path: Path) -> list[tuple[Path, list[str]]]:
    """Return the images that a table names, each looked for from here, then from the table's folder."""
    from ris_pipeline.datasets.own import read_table

    sentences: dict[Path, list[str]] = {}
    for row in read_table(path):
        image = Path(row["image"])
        beside = path.parent / image
        sentences.setdefault(beside if not image.exists() and beside.exists() else image, []).append(row["sentence"])
    if not sentences:
        raise RisError(f"{path} has no rows")
    return list(sentences.items())


def _expand(word: str) -> list[str]:
    """Return the files that fit a pattern such as "photos/**/*.jpg", or the word itself where none does."""
    if not glob.has_magic(word) or Path(word).exists():
        return [word]
    return sorted(glob.glob(word, recursive=True)) or [word]  # noqa: PTH207 (a pattern may be absolute)
