"""Reader of own images and sentences: a folder of images and one JSON line per sentence.

    {"image": "a.jpg", "ref": "the dog", "sentence": "dog on the left", "split": "train"}

Lines with the same image and ref are sentences of one object. "split" may be left out and is then "train".
With "box": [left, top, right, bottom] or "mask": "masks/a.png" on a ref's first line, results can be scored; both
are of the picture as displayed, turned by its EXIF orientation, unless the card says raw_orientation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import check_bytes, read_size, resolve_inside
from ris_pipeline.datasets.record_checks import check_ref, parse_box
from ris_pipeline.datasets.records import Annotation, Image, Reading, Ref, hash_expressions, hash_names
from ris_pipeline.errors import RisError, did_you_mean

_KEYS = ("image", "ref", "sentence", "split", "box", "mask")


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the file that holds the sentences."""
    return [data_root / card.annotations / "pairs.jsonl"]


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of the split in the file's order, and the lines that cannot be used.

    Raises RisError where the file cannot be read at all. An id is a hash of the names (of the image; of image and
    ref; of these and the sentence), so it does not change when lines are added or moved.
    """
    (path,) = list_files(card, data_root)
    reading = Reading()
    drafts: dict[int, _Draft] = {}
    check_bytes(path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            with reading.record() as names:
                record = _parse_line(line, card, where)
                image_path = resolve_inside(data_root / card.images, record["image"], where)
                image_id, ref_id = hash_names(record["image"]), hash_names(record["image"], record["ref"])
                names += [str(ref_id), record["image"]]
                if ref_id not in drafts:
                    upright = not card.raw_orientation
                    image = Image(image_id, image_path, _read_hw(record, image_path, upright=upright), upright)
                    drafts[ref_id] = _Draft(record, image, path.parent, where)
                elif key := drafts[ref_id].conflict(record):
                    raise RisError(f"{where}: {key} differs from the first line of ref {record['ref']!r}")
                drafts[ref_id].sentences.append(record["sentence"])
                image = drafts[ref_id].image
                if record["split"] == split and (image_id not in reading.images or image.hw):
                    reading.images[image_id] = image
    for ref_id, draft in drafts.items():
        if draft.record["split"] == split:
            with reading.record(ref_id, draft.record["image"]):
                ref = draft.finish(ref_id)
                check_ref(ref, draft.image, draft.where)
                reading.refs.append(ref)
    return reading


class _Draft:
    """A ref whose sentences are still being gathered."""

    def __init__(self, record: dict[str, Any], image: Image, folder: Path, where: str) -> None:
        self.record = record
        self.image = image
        self.where = f"{where}: ref {record['ref']!r}, image {record['image']}"
        self.sentences: list[str] = []
        box, mask = record.get("box"), record.get("mask")
        self.box = None if box is None else parse_box(box, image.hw, self.where)
        self.mask = None if mask is None else resolve_inside(folder, mask, where)

    def conflict(self, record: dict[str, Any]) -> str | None:
        """Return the first of split, box and mask in which another line of the ref contradicts its first line."""
        for key in ("split", "box", "mask"):
            if record.get(key) is not None and record[key] != self.record.get(key):
                return key
        return None

    def finish(self, ref_id: int) -> Ref:
        """Return the ref with all its sentences."""
        image, name, split = self.record["image"], self.record["ref"], self.record["split"]
        expressions = hash_expressions([image, name], self.sentences)
        annotation = Annotation(self.box, self.mask)
        return Ref(ref_id, self.image.image_id, split, expressions, (annotation,), name=f"{name!r} of {image}")


def _read_hw(record: dict[str, Any], path: Path, *, upright: bool) -> tuple[int, int] | None:
    """Return the image's height and width if a box or mask has to fit it; None for a bad file, reported later."""
    if record.get("box") is None and record.get("mask") is None:
        return None
    try:
        return read_size(path, upright=upright)
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
            raise RisError(f"{where}: unknown key {key!r}{did_you_mean(key, _KEYS)}")
    record.setdefault("split", "train")
    for key in ("image", "ref", "sentence", "split"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise RisError(f"{where}: {key!r} must be given, as text")
    if record["split"] not in card.splits:
        raise RisError(f"{where}: the card {card.name} has no split {record['split']!r}, only {', '.join(card.splits)}")
    return record
