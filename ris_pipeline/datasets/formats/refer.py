"""Reader of the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, and the generated shapes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ris_pipeline.arrays import Box
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import load_json, resolve_inside
from ris_pipeline.datasets.io.pickles import load_plain_pickle
from ris_pipeline.datasets.io.segmentations import is_coordinate
from ris_pipeline.datasets.records import Expression, Image, Reading, Ref, check_ref, parse_box, parse_hw
from ris_pipeline.errors import RisError


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the files that hold the annotations."""
    folder = data_root / card.annotations
    return [folder / f"refs({card.partition}).p", folder / "instances.json"]


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of the split in the file's order, with their images, and what cannot be used.

    Raises RisError where a file cannot be read at all.
    """
    refs_path, instances_path = list_files(card, data_root)
    records = load_plain_pickle(refs_path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RisError(f"{refs_path} is not a list of refs; fetch it again")
    images, annotations = _index_instances(instances_path)
    n_of_kind = Counter(map(_kind_of, annotations.values()))
    reading = Reading()
    named: set[Any] = set()
    for position, record in enumerate(records):
        where = f"{refs_path}: ref {record.get('ref_id', f'number {position}')}"
        with reading.record(record.get("ref_id")) as names:
            ref_split = _get(record, "split", str, where)
            named.add(repr(record.get("ann_id")))
            if not any(is_in_split(ref_split, known) for known in card.splits):
                reading.other_splits[ref_split] += 1
            if not is_in_split(ref_split, split):
                continue
            image_id = _get(record, "image_id", int, where)
            if image_id not in images:
                raise RisError(f"{where}: its image {image_id} is not in {instances_path}")
            names.append(str(images[image_id].get("file_name")))
            if image_id not in reading.images:
                image = _parse_image(images[image_id], data_root / card.images, instances_path)
                reading.images[image_id] = image
            reading.refs.append(_parse_ref(record, reading, annotations, n_of_kind, where))
    reading.n_unnamed = sum(
        annotation.get("image_id") in reading.images
        for ann_id, annotation in annotations.items()
        if repr(ann_id) not in named and type(annotation.get("image_id")) is int
    )
    return reading


def is_in_split(ref_split: str, split: str) -> bool:
    """Return whether a ref marked ref_split is in the split. REFER may mark one testAB, in both testA and testB."""
    if split in ("testA", "testB"):
        return split[-1] in ref_split
    if split == "test":
        return "test" in ref_split
    return ref_split == split


def _index_instances(path: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Return the records of instances.json by id: images, annotations."""
    instances = load_json(path)
    try:
        images = {int(record["id"]): record for record in instances["images"]}
        return images, {int(record["id"]): record for record in instances["annotations"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RisError(f"{path} lacks 'images' or 'annotations' with ids; fetch it again") from error


def _parse_image(record: dict[str, Any], folder: Path, instances_path: Path) -> Image:
    where = f"{instances_path}: image {record['id']}"
    image_id = _get(record, "id", int, where)
    hw = parse_hw(record.get("height"), record.get("width"), where)
    # The image's own file name: the ref's carries the annotation's number and no such file exists.
    return Image(image_id, resolve_inside(folder, record.get("file_name"), where), hw)


def _kind_of(annotation: dict[str, Any]) -> tuple[str, str]:
    """Return the image and the category of an annotation, as text: foreign values need not be hashable."""
    return str(annotation.get("image_id")), str(annotation.get("category_id"))


def _parse_ref(
    record: dict[str, Any],
    reading: Reading,
    annotations: dict[Any, Any],
    n_of_kind: Counter[tuple[str, str]],
    where: str,
) -> Ref:
    image = reading.images[record["image_id"]]
    sentences = _get(record, "sentences", list, where)
    if not sentences:
        raise RisError(f"{where}: its list of sentences is empty")
    ann_id = _parse_ann_id(record, where)
    annotation = annotations.get(ann_id)
    if annotation is None:
        raise RisError(f"{where}: its annotation {ann_id} is not in instances.json")
    owner = annotation.get("image_id")
    if owner != image.image_id:
        hint = " (as text; it must be a number)" if owner == str(image.image_id) else ""
        raise RisError(f"{where}: its annotation {ann_id} belongs to image {owner!r}{hint}, not {image.image_id}")
    # Of R-RefCOCO: sentences that are wrong on purpose, about nothing in the image.
    true = [each for each in sentences if not (isinstance(each, dict) and each.get("exist") is False)]
    if not true:
        raise RisError(
            f"{where}: all its sentences are marked `exist: false`; refs without an object are no part of it"
        )
    ref = Ref(
        ref_id=_get(record, "ref_id", int, where),
        image_id=image.image_id,
        split=record["split"],
        expressions=tuple(
            Expression(_get(sentence, "sent_id", int, where), _get(sentence, "sent", str, where)) for sentence in true
        ),
        box_xyxy=_parse_box_xywh(annotation.get("bbox"), image, where),
        segmentation=annotation.get("segmentation"),
        n_same_kind=n_of_kind[_kind_of(annotation)] if "category_id" in annotation else None,
    )
    check_ref(ref, image, f"{where}, image {image.path.name}")
    reading.n_absent += len(sentences) - len(true)
    own, annotated = record.get("category_id"), annotation.get("category_id")
    reading.n_other_kind += type(own) is int and type(annotated) is int and own != annotated
    return ref


def _parse_ann_id(record: dict[str, Any], where: str) -> int:
    """Return the one annotation that the ref names. gRefCOCO and Ref-ZOM write lists, of none and of several too."""
    ann_id = record.get("ann_id")
    if isinstance(ann_id, list) and len(ann_id) == 1:
        ann_id = ann_id[0]
    if ann_id in (None, -1, []):
        raise RisError(f"{where}: it names no object (ann_id {ann_id}); a ref without one is outside of the task")
    if isinstance(ann_id, list):
        raise RisError(f"{where}: it names {len(ann_id)} objects; a ref of several is outside of the task")
    return int(_get({"ann_id": ann_id}, "ann_id", int, where))


def _parse_box_xywh(values: Any, image: Image, where: str) -> Box:
    """Return the box as left, top, right, bottom.

    Differs from TRIS: it cuts x, y, w and h to whole numbers first; the fractions are kept here.
    """
    where = f"{where}, image {image.path.name}"
    if isinstance(values, list) and len(values) == 4 and all(map(is_coordinate, values)):
        x, y, w, h = values
        values = [x, y, x + w, y + h]
    return parse_box(values, image.hw, where)


def _get(record: Any, key: str, kind: type, where: str) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RisError(f"{where}: {key!r} must be of type {kind.__name__}, not {type(value).__name__}")
    return value
