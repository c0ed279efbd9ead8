"""The contents of a data set's files, remembered by size and time of change: each file is hashed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import make_folder, write_json
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import load_json
from ris_pipeline.datasets.load import list_files, load_dataset
from ris_pipeline.errors import RisError

_READERS = 8  # threads that hash: they wait for the disk
_N_NAMED = 10


class Inventory:
    """The files of one data set and the digests of their contents.

    memory: the JSON file that keeps them between commands; where it cannot be written, they are hashed again. A file
    counts as unchanged while its size and its time of change are.
    """

    def __init__(self, card: Card, data_root: Path, memory: Path) -> None:
        self.card = card
        self.data_root = data_root
        self.memory = memory
        self._files: dict[str, list[Any]] = {}  # path: [bytes, time of change in ns, sha256]
        self._splits: dict[str, list[Any]] = {}  # split: [digest of the annotations, paths of images and mask PNGs]
        with suppress(RisError, TypeError, ValueError, KeyError):  # not there yet, or damaged: look again
            kept = load_json(memory)
            files, splits = dict(kept["files"]), dict(kept["splits"])
            if all(len(entry) == 3 for entry in files.values()) and all(len(entry) == 2 for entry in splits.values()):
                self._files, self._splits = files, splits

    def annotations(self) -> dict[str, str]:
        """Return the sha256 of each annotation file, and of the card's exclude list, by name.

        Raises RisError naming each file that is missing.
        """
        paths = list_files(self.card, self.data_root)
        hashed = self._hash(paths, lambda n: None)
        return {path.name: digest for path, digest in zip(paths, hashed, strict=True)}

    def digest(self, split: str, advance: Callable[[int], None] = lambda n: None) -> str:
        """Return a digest of the annotations and of the images and mask PNGs of one split.

        advance: called with the number of files that are done. Raises RisError where a record of the split cannot be
        used, or an image or mask is missing or empty: whoever asks learns it before any work.
        """
        annotations = self.annotations()
        paths = self.files(split)
        lost = [path for path in paths if not path.is_file() or not path.stat().st_size]
        if lost:
            shown = ", ".join(path.name for path in lost[:_N_NAMED]) + (" …" if len(lost) > _N_NAMED else "")
            raise RisError(
                f"{self.card.name} {split}: {len(lost):,} of {len(paths):,} files in {lost[0].parent} are missing or "
                f"empty: {shown}; `ris data check` lists all"
            )
        hashed = self._hash(paths, advance)
        names = [path.relative_to(self.data_root).as_posix() if path.is_relative_to(self.data_root) else path.name
                 for path in paths]  # fmt: skip
        contents = [annotations, dict(zip(names, hashed, strict=True))]
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

    def files(self, split: str) -> list[Path]:
        """Return the image files and mask PNGs of a split. Raises RisError as load_dataset."""
        of = hashlib.sha256(json.dumps(self.annotations(), sort_keys=True).encode()).hexdigest()
        known = self._splits.get(split)
        if known is None or known[0] != of:
            dataset = load_dataset(self.card, self.data_root, split)
            paths = {str(image.path): None for image in dataset.images.values()}
            paths |= {str(ref.segmentation): None for ref in dataset.refs if isinstance(ref.segmentation, Path)}
            self._splits[split] = known = [of, list(paths)]
            self._save()
        return [Path(path) for path in known[1]]

    def _hash(self, paths: Iterable[Path], advance: Callable[[int], None]) -> list[str]:
        """The sha256 of each file, from memory where size and time of change are as at the last look."""
        stamps = {path: [(status := path.stat()).st_size, status.st_mtime_ns] for path in paths}
        unknown = [path for path, stamp in stamps.items() if self._files.get(str(path), [])[:2] != stamp]
        advance(len(stamps) - len(unknown))
        with ThreadPoolExecutor(_READERS) as pool:
            for path, digest in zip(unknown, pool.map(_hash_file, unknown), strict=True):
                self._files[str(path)] = [*stamps[path], digest]
                advance(1)
        if unknown:
            self._save()
        return [str(self._files[str(path)][2]) for path in stamps]

    def _save(self) -> None:
        with suppress(OSError, RisError):  # runs may lie where nobody may write
            make_folder(self.memory.parent)
            write_json(self.memory, {"files": self._files, "splits": self._splits})


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
