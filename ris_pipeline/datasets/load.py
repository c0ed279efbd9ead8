"""Loading of any data set by its card: its files, and a split with all of its records checked."""

from __future__ import annotations

import gc
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ris_pipeline.artifacts.layout import TRAIN_SPLIT
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.formats import (
    flickr30k,
    grefcoco,
    pairs,
    parquet,
    phrasecut,
    reasonseg,
    refer,
    referit,
    refzom,
    rrsisd,
)
from ris_pipeline.datasets.record_checks import check_id
from ris_pipeline.datasets.records import Dataset, Fault, Reading, Ref, count_expressions
from ris_pipeline.errors import EmptySplitError, RisError, suggest_path

_FORMATS = {
    "refer": refer, "grefcoco": grefcoco, "refzom": refzom, "rrsisd": rrsisd, "parquet": parquet, "referit": referit,
    "phrasecut": phrasecut, "reasonseg": reasonseg, "flickr30k": flickr30k, "pairs": pairs,
}  # fmt: skip


def load_dataset(card: Card, data_root: Path, split: str) -> Dataset:
    """Return the split of the data set. Image files are not opened; only their folder must exist.

    A train split's refs all mean something in their image: the others are in `absent`.

    Raises RisError where the card has no such split, files are missing, or any record of the split cannot be used
    and the card does not exclude it.
    """
    card.check_split(split)
    list_files(card, data_root)
    reading = read_whole(card, data_root, split)
    refs = tuple(ref for ref in reading.refs if ref.exists or split != TRAIN_SPLIT)
    if not refs:
        nothing = f"; {len(reading.refs):,} about nothing in their image" if reading.refs else ""
        others = ", ".join(f"{n:,} of {name!r}" for name, n in reading.other_splits.most_common(5))
        hint = nothing + (f"; there are {others}" if others else "")
        raise EmptySplitError(
            f"{card.name} has no refs in the split {split!r} under {data_root / card.annotations}{hint}"
        )
    images = {ref.image_id: reading.images[ref.image_id] for ref in refs}
    absent = tuple(ref for ref in reading.refs if not ref.exists) if split == TRAIN_SPLIT else ()
    return Dataset(card.name, split, images, refs, describe(card, reading), absent)


def read_whole(card: Card, data_root: Path, split: str) -> Reading:
    """Return the records of a split. Raises RisError where any of them cannot be used."""
    reading = read_split(card, data_root, split)
    if reading.faults:
        n = len(reading.faults)
        more = f"; the first of {n:,} faults" if n > 1 else ""
        remedy = "`ris data check` lists all, --write-exclude writes a list that the card can exclude"
        raise RisError(f"{reading.faults[0].text}{more}; {remedy}")
    return reading


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the usable records of a split and the faults of the others, without those that the card excludes.

    Raises RisError where an annotation file cannot be read at all.
    """
    excluded = read_exclude(data_root / card.exclude) if card.exclude else frozenset()
    with _collector_paused():
        reading: Reading = _FORMATS[card.format].read_split(card, data_root, split)
    if excluded:
        folder = data_root / card.images
        names = {i: image.path.relative_to(folder).as_posix() for i, image in reading.images.items()}
        out = [r for r in reading.refs if not excluded.isdisjoint((str(r.ref_id), r.name, names[r.image_id]))]
        reading.n_excluded = len(out) + sum(not excluded.isdisjoint(fault.names) for fault in reading.faults)
        gone = {ref.ref_id for ref in out}
        reading.refs = [ref for ref in reading.refs if ref.ref_id not in gone]
        reading.faults = [fault for fault in reading.faults if excluded.isdisjoint(fault.names)]
    reading.refs = list(drop_repeated(reading.refs, list_files(card, data_root)[0], reading.faults))
    reading.images = {ref.image_id: reading.images[ref.image_id] for ref in reading.refs}
    return reading


def drop_repeated(refs: Iterable[Ref], path: Path, faults: list[Fault]) -> tuple[Ref, ...]:
    """Return the refs without those that repeat an id of a ref or sentence before them; these become faults."""
    kept: list[Ref] = []
    ref_ids: set[int] = set()
    owner_of: dict[int, int] = {}  # sent_id: ref_id
    for ref in refs:
        where = f"{path}: ref {ref.label}"
        try:
            check_id(ref.ref_id, f"{where}: ref_id")
            if ref.ref_id in ref_ids:
                raise RisError(f"{where}: its ref_id {ref.ref_id} occurs twice; ids must be unique")
            own: set[int] = set()
            for expression in ref.expressions:
                sent_id = expression.sent_id
                check_id(sent_id, f"{where}: sent_id")
                if sent_id in owner_of or sent_id in own:
                    other = owner_of.get(sent_id, ref.ref_id)
                    raise RisError(f"{where}: its sent_id {sent_id} occurs twice, also in ref {other}")
                own.add(sent_id)
            ref_ids.add(ref.ref_id)
            owner_of |= dict.fromkeys(own, ref.ref_id)
            kept.append(ref)
        except RisError as error:
            faults.append(Fault(str(error), (str(ref.ref_id),)))
    return tuple(kept)


def read_exclude(path: Path) -> frozenset[str]:
    """Return the image names and ref ids in a list of what to leave out: one a line, up to a tab; # begins a remark.

    Raises RisError where the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise RisError(f"{path}: the card's `exclude` cannot be read ({error})") from error
    names = (line.partition("\t")[0].strip() for line in lines if not line.startswith("#"))
    return frozenset(name for name in names if name)


def describe(card: Card, reading: Reading) -> tuple[str, ...]:
    """Return a line for each peculiarity of a split's records that a user should know, though they are used."""
    others = ", ".join(f"{name!r} {n:,}" for name, n in reading.other_splits.most_common(5))
    n_absent = count_expressions(ref for ref in reading.refs if not ref.exists)
    lines = [
        (len(card.note), card.note),
        (reading.n_excluded, f"{reading.n_excluded:,} records are left out, as {card.exclude} says"),
        (reading.n_silent, f"{reading.n_silent:,} refs without sentences are left out"),
        (reading.n_maskless, f"{reading.n_maskless:,} masks are left out: they do not span their boxes"),
        (n_absent, f"{n_absent:,} sentences are about nothing in their image: scored, not learnt"),
        (sum(reading.other_splits.values()), f"refs of splits that the card does not have are not used: {others}"),
        (reading.n_other_kind, f"{reading.n_other_kind:,} refs are of another category than their annotation"),
    ]
    return tuple(f"{card.name}: {line}" for n, line in lines if n)


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the files that hold the annotations, and the card's list of what is left out.

    Raises RisError naming those that are missing; the image folder must exist too.
    """
    missing = missing_paths(card, data_root)
    if missing:
        raise RisError(describe_missing(card, data_root, missing))
    return _list_files(card, data_root)


def missing_paths(card: Card, data_root: Path) -> list[Path]:
    """Return the annotation files, and the image folder, that are not there."""
    missing = [path for path in _list_files(card, data_root) if not path.is_file()]
    images = data_root / card.images
    return missing if images.is_dir() else [*missing, images]


def describe_missing(card: Card, data_root: Path, paths: Sequence[Path]) -> str:
    """Return a line that names the missing files or folders, ten at most, and says where they come from."""
    names = ", ".join(str(path) for path in paths[:10])
    more = f" and {len(paths) - 10:,} more" if len(paths) > 10 else ""
    if card.generate:
        remedy = f"`ris data make-shapes` makes them ({card.name})"
    elif card.format == "parquet" and not card.fetch and paths == [data_root / card.images]:
        remedy = f"`ris data unpack --dataset {card.name}` writes the images that the parquet files hold, if they do"
    elif card.is_by_hand and paths != [data_root / card.images]:
        remedy = f"no plain address gives the annotations: fetch them by hand from {' or '.join(card.pages)}"
    elif card.fetch or card.hub:
        remedy = f"`ris data fetch {card.name}` gets it, data/README.md says from where"
    elif card.format == "referit":
        pickles = data_root / card.annotations / "annotations"
        remedy = f"data/README.md says where they come from; with masks: train.pickle and test.pickle in {pickles}"
    else:
        remedy = "data/README.md says where they come from"
    found = find_near(paths[0]) if paths else None
    hint = f"; there is {found}" if found else suggest_path(data_root)
    return f"{card.name} is not complete: put {names}{more} in place; {remedy}{hint}"


def find_near(missing: Path) -> Path | None:
    """Return a file that may be the missing one under another name: an archive, a copy, another Unicode form.

    For refs(unc).p: refs(unc) (1).p beside it, or refcoco.zip beside or above the folder refcoco.
    """
    for suffix in (".zip", ".tar.gz", ".tar"):
        for folder in (missing.parent, missing.parent.parent):
            if (archive := folder / f"{missing.parent.name}{suffix}").is_file():
                return archive
    if not missing.parent.is_dir():
        return None
    plain = unicodedata.normalize("NFC", missing.name.replace("\\", "/")).rpartition("/")[2]
    for path in missing.parent.iterdir():
        name = unicodedata.normalize("NFC", path.name)
        if (
            name == plain
            or name.endswith(f"_{plain}")
            or (name.startswith(missing.stem) and path.suffix == missing.suffix)
        ):
            return path
    return None


def _list_files(card: Card, data_root: Path) -> list[Path]:
    files: list[Path] = _FORMATS[card.format].list_files(card, data_root)
    return [*files, data_root / card.exclude] if card.exclude else files


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause garbage collection in the block: half of the time would go to looking for cycles, which records lack."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
