"""Reader of own images and sentences: a folder of images and one JSON line per sentence.

    {"image": "a.jpg", "ref": "the dog", "sentence": "dog on the left", "split": "train"}

Lines with the same image and ref are sentences of one object. "split" may be left out and is then "train".
With "box": [left, top, right, bottom] or "mask": "masks/a.png" on a ref's first line, results can be scored.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ris_pipeline.datasets.card import Card, suggest
from ris_pipeline.datasets.io.files import check_bytes, read_size, resolve_inside
from ris_pipeline.datasets.records import Dataset, Expression, Image, Ref, noting, parse_box
from ris_pipeline.errors import RisError

_KEYS = ("image", "ref", "sentence", "split", "box", "mask")


def list_files(card: Card, data_root: Path) -> list[Path]:
    """The file that holds the sentences."""
    return [data_root / card.annotations / "pairs.jsonl"]


def load_split(card: Card, data_root: Path, split: str, faults: list[str] | None = None) -> Dataset:
    """The refs of the split in the file's order.

    Raises RisError, with the line, on any faulty line; where `faults` gather what is wrong, these are left out.
    An id is a hash of the names (of the image; of image and ref; of these and the sentence), so it does not
    change when lines are added or moved.
    """
    (path,) = list_files(card, data_root)
    images: dict[int, Image] = {}
    refs: dict[int, _Draft] = {}
    check_bytes(path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            with noting(faults):
                record = _parse_line(line, card, where)
                image_path = resolve_inside(data_root / card.images, record["image"], where)
                image_id, ref_id = _hash_names(record["image"]), _hash_names(record["image"], record["ref"])
                if ref_id not in refs:
                    refs[ref_id] = _Draft(record, image_id, _read_hw(record, image_path), path.parent, where)
                elif where_differs := refs[ref_id].conflict(record):
                    raise RisError(f"{where}: {where_differs} differs from the first line of ref {record['ref']!r}")
                refs[ref_id].sentences.append(record["sentence"])
                if record["split"] == split and (image_id not in images or refs[ref_id].hw):
                    images[image_id] = Image(image_id, image_path, refs[ref_id].hw)
    return Dataset(card.name, split, images, tuple(d.finish(i) for i, d in refs.items() if d.record["split"] == split))


class _Draft:
    """A ref whose sentences are still being gathered."""

    def __init__(
        self, record: dict[str, Any], image_id: int, hw: tuple[int, int] | None, folder: Path, where: str
    ) -> None:
        self.record = record
        self.image_id = image_id
        self.hw = hw
        self.sentences: list[str] = []
        box, mask = record.get("box"), record.get("mask")
        place = f"{where}: ref {record['ref']!r}, image {record['image']}"
        self.box = None if box is None else parse_box(box, hw, place)
        self.mask = None if mask is None else resolve_inside(folder, mask, where)

    def conflict(self, record: dict[str, Any]) -> str | None:
        """The first of split, box and mask in which a further line of the ref contradicts its first one."""
        for key in ("split", "box", "mask"):
            if record.get(key) is not None and record[key] != self.record.get(key):
                return key
        return None

    def finish(self, ref_id: int) -> Ref:
        """The ref with all its sentences; one that is repeated is told apart by its count."""
        seen: Counter[str] = Counter()
        expressions = []
        for sentence in self.sentences:
            names = (self.record["image"], self.record["ref"], sentence, str(seen[sentence]))
            expressions.append(Expression(_hash_names(*names), sentence))
            seen[sentence] += 1
        return Ref(ref_id, self.image_id, self.record["split"], tuple(expressions), self.box, self.mask)


def _read_hw(record: dict[str, Any], path: Path) -> tuple[int, int] | None:
    """The image's height and width where a box or mask has to fit it; a bad file is told when it is needed."""
    if record.get("box") is None and record.get("mask") is None:
        return None
    try:
        return read_size(path)
    except RisError:
        return None


def _parse_line(line: bytes, card: Card, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RisError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise RisError(f'{where}: expected {{"image": …, "ref": …, "sentence": …}}')
    for key in record:
        if key not in _KEYS:
            raise RisError(f"{where}: unknown key {key!r}{suggest(key, _KEYS)}")
    record.setdefault("split", "train")
    for key in ("image", "ref", "sentence", "split"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise RisError(f"{where}: {key!r} must be given, as text")
    if record["split"] not in card.splits:
        raise RisError(f"{where}: the card {card.name} has no split {record['split']!r}, only {', '.join(card.splits)}")
    return record


def _hash_names(*names: str) -> int:
    """A number below 2^52, which every JSON reader keeps exact."""
    return int(hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:13], 16)
