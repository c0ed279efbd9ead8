"""Reader of ReferIt in both forms in circulation: pickles with masks, and JSON with boxes only.

The pickles are in `annotations/` below the card's folder, the JSON files in the folder itself; where there
is an `annotations/`, it is taken.

Ids depend on no reading order: ref_id = 100·image + crop (JSON) or + the object's place in the image's list (pickle);
sent_id = 100·ref_id + the sentence's place in the ref's list.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import load_json
from ris_pipeline.datasets.io.pickles import load_plain_pickle
from ris_pipeline.datasets.io.segmentations import read_rle_size
from ris_pipeline.datasets.record_checks import check_ref, parse_box, parse_hw
from ris_pipeline.datasets.records import Annotation, Expression, Image, Reading, Ref
from ris_pipeline.errors import RisError

# The paper trains on ReferIt's train and val sentences together: 54,134 + 5,842 = 59,976.
_QUERY_FILES = {"train": ("train", "val"), "test": ("test",)}
_KEY = re.compile(r"(\d{1,9})_(\d{1,2})")
_PER_IMAGE = _PER_REF = 100


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the files that hold the annotations: two pickles, or the JSON files where there is no annotations/."""
    folder = data_root / card.annotations
    if (folder / "annotations").is_dir():
        return [folder / "annotations" / f"{split}.pickle" for split in ("train", "test")]
    queries = [folder / f"referit_query_{part}.json" for parts in _QUERY_FILES.values() for part in parts]
    return [*queries, folder / "referit_bbox.json", folder / "referit_imsize.json"]


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of the split, and what cannot be used; only the pickles have masks.

    Raises RisError where a file cannot be read at all.
    """
    if split not in _QUERY_FILES:
        raise RisError(f"ReferIt has no split {split!r}; it has {', '.join(_QUERY_FILES)} (val is part of train)")
    folder = data_root / card.annotations
    read = _read_pickle if (folder / "annotations").is_dir() else _read_json
    return read(folder, data_root / card.images, split)


def _read_json(folder: Path, images_folder: Path, split: str) -> Reading:
    boxes_path = folder / "referit_bbox.json"
    boxes, sizes = _load_table(boxes_path), _load_table(folder / "referit_imsize.json")
    reading = Reading()
    images = reading.images
    for part in _QUERY_FILES[split]:
        path = folder / f"referit_query_{part}.json"
        for key, sentences in _load_table(path).items():
            with reading.record(key) as names:
                where = f"{path}: ref {key}"
                match = _KEY.fullmatch(key)
                if match is None:
                    raise RisError(f"{where}: expected <image>_<crop>, crop below {_PER_IMAGE}")
                image_id, crop = int(match[1]), int(match[2])
                names.append(f"{image_id}.jpg")
                if image_id not in images:
                    hw = _parse_size(sizes.get(f"{image_id}.jpg"), where)
                    images[image_id] = Image(image_id, images_folder / f"{image_id}.jpg", hw)
                if key not in boxes:
                    raise RisError(f"{where}: {boxes_path.name} has no box for it")
                # Its right and bottom are the last pixels inside, which is how PointIt reads them.
                box = parse_box(boxes[key], images[image_id].hw, f"{boxes_path}: ref {key}, image {image_id}.jpg")
                ref_id = image_id * _PER_IMAGE + crop
                expressions = _number(ref_id, sentences, where)
                annotation = Annotation(box, box_is_inclusive=True)
                ref = Ref(ref_id, image_id, part, expressions, (annotation,), name=key)
                check_ref(ref, images[image_id], where)
                reading.refs.append(ref)
    return reading


def _read_pickle(folder: Path, images_folder: Path, split: str) -> Reading:
    path = folder / "annotations" / f"{split}.pickle"
    table = load_plain_pickle(path)
    if not isinstance(table, dict):
        raise RisError(f"{path} is not a table of images; fetch it again")
    reading = Reading()
    for name, entry in table.items():
        where = f"{path}: image {name}"
        with reading.record(f"{name}.jpg"):
            if not str(name).isdecimal() or not isinstance(entry, dict):
                raise RisError(f"{where}: expected a number and its annotations")
            objects = _group_annotations(entry.get("annotations"), where)
            if not objects:
                continue
            image = Image(int(name), images_folder / f"{int(name)}.jpg", _mask_hw(objects[0][0], where))
            reading.images[image.image_id] = image
            for n, annotations in enumerate(objects):
                with reading.record(image.image_id * _PER_IMAGE + n, image.path.name):
                    reading.refs.append(_parse_object(image, n, annotations, split, where))
    return reading


def _group_annotations(annotations: Any, where: str) -> list[list[dict[str, Any]]]:
    """Return the annotations, one per sentence, gathered by object: by ref_id, or by box where there is none."""
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise RisError(f"{where}: expected a list of annotations")
    objects: dict[str, list[dict[str, Any]]] = {}
    for annotation in annotations:
        objects.setdefault(repr(annotation.get("ref_id", annotation.get("bbox"))), []).append(annotation)
    if len(objects) > _PER_IMAGE:
        raise RisError(f"{where}: {len(objects)} objects, at most {_PER_IMAGE} can be numbered")
    return list(objects.values())


def _parse_object(image: Image, n: int, annotations: list[dict[str, Any]], split: str, where: str) -> Ref:
    ref_id = image.image_id * _PER_IMAGE + n
    boxes = annotations[0].get("bbox")
    if not isinstance(boxes, (list, tuple)) or len(boxes) != 1:
        raise RisError(f"{where}: object {n} must have one box [[x1, y1, x2, y2]], not {boxes!r}")
    box = parse_box(boxes[0], image.hw, f"{where}: object {n}")
    sentences = _number(ref_id, [a.get("query") for a in annotations], f"{where}: object {n}")
    annotation = Annotation(box, annotations[0].get("segmentation"), box_is_inclusive=True)
    ref = Ref(ref_id, image.image_id, split, sentences, (annotation,))
    check_ref(ref, image, f"{where}: object {n}")
    return ref


def _number(ref_id: int, sentences: Any, where: str) -> tuple[Expression, ...]:
    if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
        raise RisError(f"{where}: expected a list of sentences")
    if not 1 <= len(sentences) <= _PER_REF:
        raise RisError(f"{where}: {len(sentences)} sentences, expected 1 to {_PER_REF}")
    return tuple(Expression(ref_id * _PER_REF + n, sentence) for n, sentence in enumerate(sentences))


def _mask_hw(annotation: dict[str, Any], where: str) -> tuple[int, int] | None:
    """Return the image's size as its first run-length mask has it: the pickles name it nowhere else."""
    size = read_rle_size(annotation.get("segmentation"))
    return None if size is None else parse_hw(*size, where)


def _parse_size(size: Any, where: str) -> tuple[int, int]:
    if not isinstance(size, list) or len(size) != 2:
        raise RisError(f"{where}: referit_imsize.json has no [width, height] of its image")
    return parse_hw(size[1], size[0], f"{where}: referit_imsize.json")


def _load_table(path: Path) -> dict[str, Any]:
    table = load_json(path)
    if not isinstance(table, dict):
        raise RisError(f"{path} is not a JSON table; fetch it again")
    return table
