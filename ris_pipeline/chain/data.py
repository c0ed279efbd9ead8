"""The data set of a chain: fetched, checked as a whole, or generated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import make_folder
from ris_pipeline.artifacts.identity import differences
from ris_pipeline.chain.context import Context
from ris_pipeline.config import N_TOKENS
from ris_pipeline.datasets.card import Card, Download
from ris_pipeline.datasets.check import Check, check_contents, check_dataset, check_overlap, write_exclude
from ris_pipeline.datasets.fetch import (
    describe_download,
    fetch,
    fetch_many,
    find_lost,
    group_downloads,
    is_there,
    list_downloads,
)
from ris_pipeline.datasets.load import describe_missing, missing_paths, read_exclude
from ris_pipeline.datasets.own import PAIRS, draw_example, read_own, write_own
from ris_pipeline.errors import DownloadError, RisError


def check_data(context: Context, *, deep: bool, overlap: Path | None = None) -> Check:
    """Return the size of each split, and everything that cannot be used or looks odd.

    `deep`: also open every image and mask. `overlap`: a list of images that are looked for in each split. Raises
    RisError where annotation files or the image folder are missing, and for a list that cannot be read.
    """
    card = context.card
    check = check_dataset(card, context.data_root)
    if check.absent:
        raise RisError(describe_missing(card, context.data_root, check.absent))
    if deep:
        with context.console.progress("images", len(check.images)) as advance:
            check_contents(check, context.data_root / card.images, context.workers, advance)
    if overlap is not None:
        check_overlap(check, overlap)
    sentences = [e.sentence for dataset in check.datasets for ref in dataset.refs for e in ref.expressions]
    distinct = list(dict.fromkeys(sentences))
    if cut := context.inventory.cut(distinct, lambda: _find_cut(distinct)):
        check.remarks[f"sentences longer than the {N_TOKENS} tokens that CLIP reads: their end is cut"] = cut
    return check


def plan_fetch(context: Context) -> list[tuple[list[Download], bool]]:
    """Return what the card says to download, as of `group_downloads`, annotations first, and whether it is there."""
    groups = group_downloads(_list_downloads(context))
    return [(items, all(is_there(item, context.card, context.data_root) for item in items)) for items in groups]


def fetch_data(context: Context) -> None:
    """Download what the card says and is not there, and write the images that the hub's files hold as files.

    Raises RisError for a card without sources, where a file comes from none of them, and where annotations or images
    are missing afterwards.
    """
    card, data_root = context.card, context.data_root
    missing = [path for path in missing_paths(card, data_root) if path != data_root / card.images]
    if card.is_by_hand and missing:
        raise RisError(describe_missing(card, data_root, missing))
    try:
        for items in group_downloads(_list_downloads(context)):
            if all(is_there(item, card, data_root) for item in items):
                context.say(
                    f"{items[0].holds}: nothing to download, {data_root / items[0].into} has all that is needed"
                )
                continue
            context.say(describe_download(items, data_root))
            if len(items) > 1:
                fetch_many(items, data_root, context.console)
            else:
                fetch(items[0], data_root, context.console)
    except DownloadError as error:
        by_hand = f"; or fetch it by hand: {_describe_pages(context)}" if card.pages else ""
        raise DownloadError(f"{error}{by_hand}") from error
    if card.format == "parquet" and not card.fetch:
        unpack_images(context)
    if missing := missing_paths(card, data_root):
        raise RisError(describe_missing(card, data_root, missing))
    if card.fetch and len(lost := find_lost(card, data_root)) > card.holes:
        names = ", ".join(map(str, lost[:3]))
        raise RisError(
            f"{card.name}: {len(lost):,} of the images are still missing, no archive had them: {names}; "
            "`ris data check --write-exclude FILE` writes the list that the card can exclude"
        )


def _list_downloads(context: Context) -> list[Download]:
    card = context.card
    if not card.fetch and not card.hub:
        remedy = "`ris data make-shapes` makes it" if card.generate else "put your own files there: data/README.md"
        if card.pages:
            remedy = f"fetch it by hand: {_describe_pages(context)}"
        raise RisError(f"{card.name}: its card has nothing to download; {remedy}")
    return list_downloads(card)


def _describe_pages(context: Context) -> str:
    return f"{' or '.join(context.card.pages)} into {context.data_root / context.card.annotations}"


def import_own(context: Context, source: Path, name: str, images: Path | None) -> Path:
    """Make a data set of own images and sentences, and return its card's path.

    Raises RisError where the name is no word, is taken (without `force`), or the source holds no sentence.
    """
    _check_name(context, name)
    folder, records = read_own(source, images)
    card = write_own(records, folder, name, context.data_root)
    n_images, n_refs = len({r["image"] for r in records}), len({(r["image"], r["ref"]) for r in records})
    context.say(f"{name}: {len(records):,} sentences of {n_refs:,} refs in {n_images:,} images of {folder}")
    return card


def begin_own(context: Context, name: str) -> Path:
    """Make a data set of two drawn pictures, as an example to be replaced, and return its card's path.

    Raises RisError as `import_own` for a name.
    """
    _check_name(context, name)
    folder = context.data_root / name / "images"
    make_folder(folder)
    return write_own(draw_example(folder), folder, name, context.data_root)


def _check_name(context: Context, name: str) -> None:
    if not re.fullmatch(r"[\w+-]+", name):
        raise RisError(f"{name!r} must be a word of letters, digits, _, + and -: it names a card and a folder")
    for path in (context.data_root / f"{name}.toml", context.data_root / name / PAIRS):
        if path.exists() and not context.force:
            raise RisError(f"{path}: exists; choose another name, or --force replaces it")


def write_faults(context: Context, check: Check, file: Path) -> None:
    """Write the list of what cannot be used to a file below the data root, for the card's `exclude`."""
    card = context.card
    before = read_exclude(context.data_root / card.exclude) if card.exclude else ()
    n = write_exclude(context.data_root / file, check, before)
    context.say(f'{context.data_root / file}: {n:,} names; in the card: exclude = "{file}"')


def _find_cut(sentences: list[str]) -> list[str]:
    # A token is at least a byte: if no sentence can be too long, torch need not be imported.
    if not any(len(sentence.encode("utf-8", "replace")) > N_TOKENS - 2 for sentence in sentences):
        return []
    from ris_pipeline.networks.clip import find_cut

    return find_cut(sentences, N_TOKENS)


def unpack_images(context: Context) -> Path:
    """Write the images that the data set's parquet files hold to the card's folder, and return it.

    Raises RisError for another format, and where the files are missing or hold no images.
    """
    from ris_pipeline.datasets.formats import parquet

    card, folder = context.card, context.data_root / context.card.images
    if card.format != "parquet":
        raise RisError(f"{card.name} has no images in its annotation files: its format is {card.format}")
    missing = [path for path in parquet.list_files(card, context.data_root) if not path.is_file()]
    if missing:
        raise RisError(describe_missing(card, context.data_root, missing))
    n = len(set(parquet.unpack_images(card, context.data_root)))
    context.say(f"{card.name}: {n:,} images in {folder}")
    return folder


def make_shapes(context: Context) -> Path | None:
    """Generate the data set as its card says, unless that is done, and return its folder; None if nothing was made.

    Raises RisError for a card without a [generate] table, for one that expects the files elsewhere, and where the
    folder holds something else.
    """
    card = context.card
    if not card.generate:
        raise RisError(f"{card.name} is not a generated data set: its card has no [generate] table")
    from ris_pipeline.shapes.generate import STAMP, generate, remove_leftovers

    _check_places(card)
    folder = context.data_root / card.images.parent
    if not context.dry_run:
        remove_leftovers(folder)
    stamp = _read_stamp(folder / STAMP)
    if stamp == card.generate and not context.force:
        context.say(f"{card.name}: up to date in {folder}, same settings")
        return None
    # Generating replaces the folder; never one that somebody else filled.
    if folder.exists() and stamp is None and not context.force:
        raise RisError(f"{folder}: exists but was not generated here; --force replaces it")
    changed = "; ".join(differences(stamp, card.generate)) if stamp else "not there yet"
    context.say(f"{card.name}: {'would generate' if context.dry_run else 'generating'} {folder} ({changed})")
    if context.dry_run:
        return None
    settings = dict(card.generate)
    with context.console.progress(card.name, sum(settings["n_images"].values())) as advance:
        generate(folder, **settings, workers=max(context.workers, 1), advance=advance)
    return folder


def _check_places(card: Card) -> None:
    """Raise RisError where the card expects the generated files elsewhere than they are written."""
    folder = Path(card.name)  # its own: a copied card must not replace the data set that it was copied from
    right = {
        "partition": ("shapes", card.partition),
        "images": (str(folder / "images"), str(card.images)),
        "annotations": (str(folder / "refer" / str(card.generate.get("variant"))), str(card.annotations)),
    }
    for key, (expected, written) in right.items():
        if written != expected:
            raise RisError(
                f'{card.name}: the card must have {key} = "{expected}", where make-shapes writes, not "{written}"'
            )


def _read_stamp(stamp: Path) -> Any:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
