"""What is known of a data set's files and sentences, kept between commands: each file is hashed once."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import write_json
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import load_json
from ris_pipeline.datasets.load import list_files, read_whole
from ris_pipeline.datasets.records import Reading
from ris_pipeline.errors import RisError

_READERS = 8  # threads that hash: they wait for the disk
_N_NAMED = 10


class Inventory:
    """The files of one data set and the digests of their contents.

    memory: the JSON file that keeps them between commands; while it cannot be written, or its folder does not exist,
    all files are hashed again. A file with the same size and time of change counts as unchanged.
    """

    def __init__(self, card: Card, data_root: Path, memory: Path) -> None:
        self.card = card
        self.data_root = data_root
        self.memory = memory
        self._files: dict[str, list[Any]] = {}  # name: [bytes, time of change in ns, sha256]
        self._splits: dict[str, list[Any]] = {}  # split: [digest of the annotations, names of images and mask PNGs]
        self._cut: list[Any] = ["", []]  # digest of the sentences, numbers of those that are cut
        with suppress(RisError, TypeError, ValueError, KeyError):  # not there yet, or damaged: hash again
            kept = load_json(memory)
            files, splits = dict(kept["files"]), dict(kept["splits"])
            if all(len(entry) == 3 for entry in files.values()) and all(len(entry) == 2 for entry in splits.values()):
                self._files, self._splits = files, splits
            digest, cut = kept["cut"]
            self._cut = [str(digest), list(map(int, cut))]

    def annotations(self) -> dict[str, str]:
        """Return the sha256 of each annotation file and of the exclude list, by name, and how photographs are read.

        Raises RisError naming each file that is missing.
        """
        paths = list_files(self.card, self.data_root)
        hashed = self._hash([self._name_of(path) for path in paths])
        digests = {path.name: digest for path, digest in zip(paths, hashed, strict=True)}
        return digests | ({"raw_orientation": "true"} if self.card.raw_orientation else {})

    def images(self, split: str, report: Callable[[int], None] = lambda n: None) -> str:
        """Return a digest of the images and mask PNGs of one split.

        A file that is gone counts with its last contents, since what was made from it has not changed. report: called
        with the number of files that have to be read, if any. Raises RisError where a record of the split cannot be
        used, so that this is known before any work.
        """
        # In the order of the annotations, without names: a data set may be moved.
        return hashlib.sha256("".join(self._hash(self.files(split), report)).encode()).hexdigest()

    def check_files(self, split: str) -> None:
        """Raise RisError, naming the first, where images or mask PNGs of a split are missing or empty."""
        names = self.files(split)
        lost = [name for name in names if not self._stamp(name)[:1] > [0]]
        if lost:
            shown = ", ".join(str(self.data_root / name) for name in lost[:_N_NAMED]) + (
                " …" if len(lost) > _N_NAMED else ""
            )
            raise RisError(
                f"{self.card.name} {split}: {len(lost):,} of {len(names):,} images and masks are missing or empty: "
                f"{shown}; `ris data check` lists all"
            )

    def files(self, split: str) -> list[str]:
        """Return the names of a split's image files and mask PNGs, none where the card has no such split.

        Names of files below the data root are relative to it, so that data and runs may be copied elsewhere together.
        Raises RisError where a record of it cannot be used.
        """
        of = hashlib.sha256(json.dumps(self.annotations(), sort_keys=True).encode()).hexdigest()
        known = self._splits.get(split)
        if known is None or known[0] != of:
            reading = read_whole(self.card, self.data_root, split) if split in self.card.splits else Reading()
            paths = [image.path for image in reading.images.values()]
            paths += [path for ref in reading.refs for path in ref.mask_files]
            self._splits[split] = known = [of, list(dict.fromkeys(map(self._name_of, paths)))]
            self._save()
        return [str(name) for name in known[1]]

    def cut(self, sentences: Sequence[str], find: Callable[[], list[str]]) -> list[str]:
        """Return those of the sentences that are too long, which `find` lists, from memory if they are the same.

        The folder of the memory is made: what has to be imported to count tokens takes longer than all else.
        """
        of = hashlib.sha256(json.dumps(sentences).encode()).hexdigest()
        if self._cut[0] != of:
            long = set(find())
            self._cut = [of, [k for k, sentence in enumerate(sentences) if sentence in long]]
            with suppress(OSError):
                self.memory.parent.mkdir(parents=True, exist_ok=True)
            self._save()
        numbers = set(self._cut[1])
        return [sentence for k, sentence in enumerate(sentences) if k in numbers]

    def _hash(self, names: Sequence[str], report: Callable[[int], None] = lambda n: None) -> list[str]:
        """Return the sha256 of each file, from memory if size and time of change are the same, or if it is gone."""
        stamps = {name: self._stamp(name) for name in names}
        unknown = [name for name, stamp in stamps.items() if stamp and self._files.get(name, [])[:2] != stamp]
        if unknown:
            report(len(unknown))
            with ThreadPoolExecutor(_READERS) as pool:
                hashed = pool.map(_hash_file, [self.data_root / name for name in unknown])
                self._files |= {n: [*stamps[n], sha256] for n, sha256 in zip(unknown, hashed, strict=True)}
            self._save()
        return [str(self._files.get(name, ["", "", "missing"])[2]) for name in names]

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self.data_root).as_posix() if path.is_relative_to(self.data_root) else str(path)

    def _stamp(self, name: str) -> list[int]:
        """Return size and time of change; empty where there is no such file."""
        try:
            # Without a Path: for 20,000 images that would take most of the time.
            status = os.stat(os.path.join(self.data_root, name))  # noqa: PTH116, PTH118
        except (OSError, ValueError):
            return []
        return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else []

    def _save(self) -> None:
        if self.memory.parent.is_dir():
            with suppress(OSError):  # runs may be read-only
                write_json(self.memory, {"files": self._files, "splits": self._splits, "cut": self._cut})


def _hash_file(path: Path) -> str:
    try:
        file = path.open("rb")
    except OSError:  # gone, or not readable: reported when it is needed
        return "unreadable"
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()
