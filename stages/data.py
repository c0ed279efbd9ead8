"""The commands of `ris data`: list, fetch, import, check, unpack, make-shapes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ris_pipeline.errors import RisError
from ris_pipeline.process.workers import WORKERS
from stages.console import align, emit
from stages.context import DataRoot, Making, Output, Places, Workers, open_context

if TYPE_CHECKING:
    from ris_pipeline.datasets.check import Check

# What fits on a screen, where --json has all: faults, remarks, and of a remark's names how many and how long.
N_FAULTS, N_REMARKS, N_NAMED, WIDTH = 12, 8, 3, 40


def run_list(
    output: Output,
    data_root: DataRoot = Path("data"),
) -> None:
    """List the known data sets: format, what is there, sentences, licence.

    Reads:    the cards in data/ and the shipped ones; which files exist
    Writes:   stdout: a line per data set
    Example:  ris data list
    """
    from ris_pipeline.datasets.card import list_cards
    from ris_pipeline.datasets.load import missing_paths

    lines, rows = [], []
    for card in list_cards():
        missing = missing_paths(card, data_root)
        there = "whole" if not missing else "no images" if missing == [data_root / card.images] else "–"
        splits = ", ".join(f"{split} {count:,}" if count else split for split, count in card.splits.items())
        lines.append([card.name, card.format, there, splits, card.licence or "see its page"])
        rows.append({
            "name": card.name, "format": card.format, "splits": dict(card.splits), "there": there,
            "licence": card.licence,
        })  # fmt: skip
    emit(output, align(lines), rows)


def run_fetch(
    output: Output,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a card, or path of its .toml file.")],
    data_root: DataRoot = Path("data"),
    print_only: Annotated[bool, typer.Option("--print", help="Say what would be downloaded, then stop.")] = False,
) -> None:
    """Download a data set from the addresses in its card.

    Reads:    the card; the addresses, in turn until one has the file whole
    Writes:   the files, where the card looks for them
    Example:  ris data fetch refcoco --data-root /path/to/data
    """
    from ris_pipeline.chain.data import fetch_data, plan_fetch
    from ris_pipeline.datasets.fetch import describe_download

    context = open_context(Places(dataset=name, data_root=data_root), output=output)
    if print_only:
        plan = plan_fetch(context)
        lines = [describe_download(items, data_root) + (" (there)" if there else "") for items, there in plan]
        if context.card.is_by_hand:
            pages = " or ".join(context.card.pages)
            lines.insert(0, f"annotations: by hand, from {pages} into {data_root / context.card.annotations}")
        rows = [{**asdict(item), "into": str(item.into), "there": there} for items, there in plan for item in items]
        emit(output, "\n".join(lines), rows)
        return
    fetch_data(context)
    hint = f"`ris data check --dataset {name} --deep` opens every file"
    emit(output, f"{context.card.name}: complete in {data_root}; {hint}", {"path": str(data_root)})


def run_import(
    output: Output,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A CSV, TSV, JSONL or COCO file, or a folder.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the data set shall be called.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the images; the source's own if left out.")
    ] = None,
    data_root: DataRoot = Path("data"),
    force: Annotated[bool, typer.Option("--force", help="Replace the data set of that name.")] = False,
) -> None:
    """Make a data set of own images and sentences.

    Reads:    a table of image and sentence, name.txt beside name.jpg, COCO's
              JSON with texts, or LabelMe's
    Writes:   <data root>/<name>.toml, <name>/pairs.jsonl, <name>/masks/
    Example:  ris data import photos/sentences.csv mine
    """
    from ris_pipeline.chain.data import import_own

    context = open_context(Places(data_root=data_root), Making(force=force), output)
    card = import_own(context, source, name, images)
    context.say(f"look at it by: ris data check --dataset {card} --data-root {data_root}")
    emit(output, str(card), {"card": str(card)})


def run_check(
    places: Places,
    output: Output,
    deep: Annotated[bool, typer.Option("--deep", help="Also open every image and mask.")] = False,
    write_exclude: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a list of what cannot be used, for the card's exclude.")
    ] = None,
    overlap: Annotated[
        Path | None, typer.Option(metavar="LIST", help="Count the images of each split that this file lists.")
    ] = None,
    workers: Workers = WORKERS,
) -> None:
    """List everything that is missing, faulty or odd in a data set.

    Reads:    the card and its files; with --deep every image and mask
    Writes:   stdout: what is there of each split, and what is wrong
    Example:  ris data check --dataset refcoco --data-root /path/to/data
    """
    from ris_pipeline.chain.data import check_data, write_faults

    context = open_context(places, output=output, workers=workers)
    check = check_data(context, deep=deep, overlap=overlap)
    emit(output, _describe(context.card.name, check), {
        "splits": [asdict(split) for split in check.splits],
        "faults": {kind: [fault.text for fault in faults] for kind, faults in check.faults.items()},
        "remarks": check.remarks,
    })  # fmt: skip
    if write_exclude is not None:
        write_faults(context, check, write_exclude)
    if check.faults:
        raise RisError(_summarise(context.card.name, check))


def run_unpack(places: Places, output: Output) -> None:
    """Write the images that a data set's parquet files hold as files.

    Reads:    the card; the parquet files of the Hugging Face hub
    Writes:   the images that are not there yet, to the card's folder
    Example:  ris data unpack --dataset refcoco-m --data-root /path/to/data
    """
    from ris_pipeline.chain.data import unpack_images

    folder = unpack_images(open_context(places, output=output))
    emit(output, str(folder), {"path": str(folder)})


def run_make_shapes(
    places: Places,
    making: Making,
    output: Output,
    workers: Workers = WORKERS,
) -> None:
    """Generate a data set of shapes and sentences.

    Reads:    the card's [generate] table
    Writes:   <data root>/<dataset>/: images, refs(shapes).p, instances.json
    Example:  ris data make-shapes --dataset shapesg
    """
    from ris_pipeline.chain.data import make_shapes

    context = open_context(places, making, output, workers=workers)
    folder = make_shapes(context)
    if folder is not None:
        emit(output, str(folder), {"path": str(folder), **context.card.generate})


def _describe(name: str, check: Check) -> str:
    lines = []
    for split in check.splits:
        counts = f"{split.n_images:,} images, {split.n_refs:,} refs, {split.n_expressions:,} sentences"
        expected = "any number" if split.n_expected is None else f"{split.n_expected:,}"
        lines.append(f"{name} {split.split}: {counts} (card: {expected})")
    for remark, names in list(check.remarks.items())[:N_REMARKS]:
        shown = ", ".join(name if len(name) <= WIDTH else f"{name[:WIDTH]}…" for name in names[:N_NAMED])
        more = f" and {len(names) - N_NAMED:,} more" if len(names) > N_NAMED else ""
        lines.append(f"note: {remark}" + (f": {shown}{more}" if names else ""))
    if len(check.remarks) > N_REMARKS:
        lines.append(f"note: {len(check.remarks) - N_REMARKS} more remarks: --json")
    n_shown = max(N_FAULTS // max(len(check.faults), 1), 1)
    for kind, faults in check.faults.items():
        more = f", the first {n_shown} (all: --json)" if len(faults) > n_shown else ""
        lines.append(f"{len(faults):,} {kind}{more}:")
        lines += [f"  {fault.text}" for fault in faults[:n_shown]]
    return "\n".join(lines)


def _summarise(name: str, check: Check) -> str:
    """Return the last line of a check that found faults."""
    faults = [fault for found in check.faults.values() for fault in found]
    line = f"{name}: " + ", ".join(f"{len(found):,} {kind}" for kind, found in check.faults.items())
    line = faults[0].text if len(faults) == 1 else line
    if any(fault.names for fault in faults):
        line += "; mend it or fetch it again, or leave it out: --write-exclude FILE writes the list for the card"
    return line
