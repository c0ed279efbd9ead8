"""Loading of any data set by its card, and the check of what is there."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.formats import pairs, refer, referit
from ris_pipeline.datasets.records import Dataset, Image, noting
from ris_pipeline.errors import RisError, suggest_path


class _Reader(NamedTuple):
    list_files: Callable[[Card, Path], list[Path]]
    load_split: Callable[[Card, Path, str, list[str] | None], Dataset]


_READERS = {
    "refer": _Reader(refer.list_files, refer.load_split),
    "referit": _Reader(referit.list_files, referit.load_split),
    "pairs": _Reader(pairs.list_files, pairs.load_split),
}


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """What is there of one split; n_expected is the card's number of sentences, missing files and folders."""

    split: str
    n_images: int
    n_refs: int
    n_expressions: int
    n_expected: int | None
    missing: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing and the number of sentences is the expected one."""
        return not self.missing and self.n_expected in (None, self.n_expressions)


def load_dataset(card: Card, data_root: Path, split: str) -> Dataset:
    """The split of the data set. Image files are not opened; only their folder must exist.

    Raises RisError where the card has no such split, files are missing, or any record of the split is faulty.
    """
    card.check_split(split)
    list_files(card, data_root)
    dataset = _read_split(card, data_root, split)
    if not dataset.refs:
        raise RisError(f"{card.name} has no refs in the split {split!r} under {data_root / card.annotations}")
    return dataset


def list_images(card: Card, data_root: Path) -> list[Image]:
    """The images of all splits, each file once. Raises RisError as load_dataset, but for an empty split."""
    list_files(card, data_root)
    images: dict[Path, Image] = {}
    for split in card.splits:
        images |= {image.path: image for image in _read_split(card, data_root, split).images.values()}
    return list(images.values())


def list_files(card: Card, data_root: Path) -> list[Path]:
    """The files that hold the annotations. Raises RisError naming each that is missing, and the image folder."""
    missing = _missing_paths(card, data_root)
    if missing:
        raise RisError(describe_missing(card, data_root, missing))
    return _READERS[card.format].list_files(card, data_root)


def describe_missing(card: Card, data_root: Path, paths: Sequence[Path]) -> str:
    """One line that names the missing files or folders, ten at most, and where they come from."""
    names = ", ".join(str(path) for path in paths[:10])
    more = f" and {len(paths) - 10:,} more" if len(paths) > 10 else ""
    if card.generate:
        remedy = f"`ris data make-shapes` makes them ({card.name})"
    elif card.format == "referit":
        pickles = data_root / card.annotations / "annotations"
        remedy = f"data/README.md says where they come from; with masks: train.pickle and test.pickle in {pickles}"
    else:
        remedy = "data/README.md says where they come from"
    return f"{card.name} is not complete: put {names}{more} in place; {remedy}{suggest_path(data_root)}"


def check_dataset(card: Card, data_root: Path) -> list[SplitCheck]:
    """What is there of each split, in the card's order. Raises RisError where a record is faulty."""
    missing = tuple(_missing_paths(card, data_root))
    if missing:
        return [SplitCheck(split, 0, 0, 0, expected, missing) for split, expected in card.splits.items()]
    return [_check_split(card, data_root, split) for split in card.splits]


def find_faulty_records(card: Card, data_root: Path) -> list[str]:
    """What is wrong with each record that cannot be used, and with whole files; each told once.

    Raises RisError where files are missing.
    """
    list_files(card, data_root)
    faults: list[str] = []
    for split in card.splits:
        with noting(faults):
            _read_split(card, data_root, split, faults)
    return list(dict.fromkeys(faults))


def _check_split(card: Card, data_root: Path, split: str) -> SplitCheck:
    dataset = _read_split(card, data_root, split)
    needed = [image.path for image in dataset.images.values()]
    needed += [ref.segmentation for ref in dataset.refs if isinstance(ref.segmentation, Path)]
    missing = tuple(path for path in needed if not path.is_file())
    return SplitCheck(split, len(dataset.images), len(dataset.refs), dataset.n_expressions, card.splits[split], missing)


def _read_split(card: Card, data_root: Path, split: str, faults: list[str] | None = None) -> Dataset:
    with _collector_paused():
        return _READERS[card.format].load_split(card, data_root, split, faults)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection inside the block: half of the time would go to looking through millions of new
    records for cycles, which they never form."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _missing_paths(card: Card, data_root: Path) -> list[Path]:
    missing = [path for path in _READERS[card.format].list_files(card, data_root) if not path.is_file()]
    images = data_root / card.images
    return missing if images.is_dir() else [*missing, images]
