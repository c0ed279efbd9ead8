"""Reader of the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, the generated shapes, and what others made alike.

A ref may mean several objects or none (gRefCOCO, Ref-ZOM), and some of its sentences may be about nothing in the image
(R-RefCOCO): these become a ref of their own, whose id is that of the file plus records.ABSENT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris_pipeline.arrays import Box
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import load_json, resolve_inside
from ris_pipeline.datasets.io.pickles import load_plain_pickle
from ris_pipeline.datasets.io.segmentations import is_coordinate, pack_polygons
from ris_pipeline.datasets.record_checks import check_ref, parse_box, parse_hw
from ris_pipeline.datasets.records import ABSENT, Annotation, Expression, Image, Reading, Ref
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
    records, instances = load_plain_pickle(refs_path), load_instances(instances_path)
    return read_refs(records, refs_path, instances, card, split, lambda name: data_root / card.images)


@dataclass(frozen=True)
class Instances:
    """The records of instances.json by their ids."""

    path: Path
    images: dict[Any, Any]
    annotations: dict[Any, Any]


def load_instances(path: Path) -> Instances:
    """Return the records of an instances.json. Raises RisError where it cannot be read or is none."""
    loaded = load_json(path, pack_polygons)
    try:
        images = {int(record["id"]): record for record in loaded["images"]}
        return Instances(path, images, {int(record["id"]): record for record in loaded["annotations"]})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RisError(f"{path} lacks 'images' or 'annotations' with ids; fetch it again") from error


def read_refs(
    records: Any,
    refs_path: Path,
    instances: Instances,
    card: Card,
    split: str,
    folder_of: Callable[[str], Path],
) -> Reading:
    """Return the refs of the split among the records that refs_path holds, and what cannot be used.

    folder_of: the folder of an image by its file name. Raises RisError where the records are no list of refs.
    """
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RisError(f"{refs_path} is not a list of refs; fetch it again")
    images, annotations = instances.images, instances.annotations
    n_of_kind = Counter(map(_kind_of, annotations.values()))
    reading = Reading()
    named: set[Any] = set()
    for position, record in enumerate(records):
        where = f"{refs_path}: ref {record.get('ref_id', f'number {position}')}"
        with reading.record(record.get("ref_id")) as names:
            ref_split = _get(record, "split", str, where)
            named.update(map(repr, _list_ann_ids(record)))
            if not any(is_in_split(ref_split, known) for known in card.splits):
                reading.other_splits[ref_split] += 1
            if not is_in_split(ref_split, split):
                continue
            image_id = _get(record, "image_id", int, where)
            if image_id not in images:
                raise RisError(f"{where}: its image {image_id} is not in {instances.path}")
            names.append(str(images[image_id].get("file_name")))
            if image_id not in reading.images:
                image = _parse_image(images[image_id], folder_of, instances.path)
                reading.images[image_id] = image
            reading.refs += _parse_refs(record, reading, annotations, n_of_kind, where)
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


def _parse_image(record: dict[str, Any], folder_of: Callable[[str], Path], instances_path: Path) -> Image:
    where = f"{instances_path}: image {record['id']}"
    image_id = _get(record, "id", int, where)
    hw = parse_hw(record.get("height"), record.get("width"), where)
    # The image's own file name: the ref's carries the annotation's number and no such file exists.
    name = record.get("file_name")
    return Image(image_id, resolve_inside(folder_of(str(name)), name, where), hw)


def _kind_of(annotation: dict[str, Any]) -> tuple[str, str]:
    """Return the image and the category of an annotation, as text: foreign values need not be hashable."""
    return str(annotation.get("image_id")), str(annotation.get("category_id"))


def _parse_refs(
    record: dict[str, Any],
    reading: Reading,
    annotations: dict[Any, Any],
    n_of_kind: Counter[tuple[str, str]],
    where: str,
) -> list[Ref]:
    """Return the ref of a record, and one of its sentences that are about nothing there; none without sentences."""
    image = reading.images[record["image_id"]]
    sentences = _get(record, "sentences", list, where)
    if not sentences:
        reading.n_silent += 1
        return []
    ref_id = _get(record, "ref_id", int, where)
    meant = [_find_annotation(ann_id, annotations, image, where) for ann_id in _parse_ann_ids(record, where)]
    # As gRefCOCO's own loader does: a crowd is no object that several sentences could count.
    meant = [annotation for annotation in meant if not annotation.get("iscrowd")] or meant
    parts: list[list[Expression]] = [[], []]  # of what is there, of what is not
    for sentence in sentences:
        expression = Expression(_get(sentence, "sent_id", int, where), _get(sentence, "sent", str, where))
        parts[sentence.get("exist") is False].append(expression)
    of_kind = [n_of_kind[_kind_of(annotation)] for annotation in meant if "category_id" in annotation]
    place = f"{where}, image {image.path.name}"
    parsed = tuple(
        Annotation(
            parse_box_xywh(annotation["bbox"], image.hw, f"{where}, image {image.path.name}")
            if "bbox" in annotation
            else None,
            annotation.get("segmentation"),
        )
        for annotation in meant
    )
    refs = [
        Ref(
            ref_id, image.image_id, record["split"], tuple(parts[0]), parsed,
            n_same_kind=of_kind[0] if len(meant) == len(of_kind) == 1 else None,
        ),
        Ref(ref_id + ABSENT, image.image_id, record["split"], tuple(parts[1]), (), name=f"{ref_id} (absent)"),
    ]  # fmt: skip
    refs = [ref for ref in refs if ref.expressions]
    for ref in refs:
        check_ref(ref, image, place)
    own, annotated = record.get("category_id"), meant[0].get("category_id") if meant else None
    reading.n_other_kind += type(own) is int and type(annotated) is int and own != annotated
    return refs


def _list_ann_ids(record: dict[str, Any]) -> list[Any]:
    ann_id = record.get("ann_id")
    return ann_id if isinstance(ann_id, list) else [ann_id]


def _parse_ann_ids(record: dict[str, Any], where: str) -> list[int]:
    """Return the annotations that the ref names, each once; none for [], -1, [-1] and Ref-ZOM's source "zero"."""
    ids = _list_ann_ids(record)
    if ids in ([], [-1]) or record.get("source") == "zero":
        return []
    return list(dict.fromkeys(_get({"ann_id": ann_id}, "ann_id", int, where) for ann_id in ids))


def _find_annotation(ann_id: int, annotations: dict[Any, Any], image: Image, where: str) -> dict[str, Any]:
    annotation: dict[str, Any] | None = annotations.get(ann_id)
    if annotation is None:
        raise RisError(f"{where}: its annotation {ann_id} is not in instances.json")
    owner = annotation.get("image_id")
    if owner != image.image_id:
        hint = " (as text; it must be a number)" if owner == str(image.image_id) else ""
        raise RisError(f"{where}: its annotation {ann_id} belongs to image {owner!r}{hint}, not {image.image_id}")
    return annotation


def parse_box_xywh(values: Any, hw: tuple[int, int] | None, where: str) -> Box:
    """Return a box that is given as left, top, width and height as left, top, right and bottom; errors of parse_box.

    Differs from TRIS: it cuts x, y, w and h to whole numbers first; the fractions are kept here.
    """
    if isinstance(values, list) and len(values) == 4 and all(map(is_coordinate, values)):
        x, y, w, h = values
        values = [x, y, x + w, y + h]
    return parse_box(values, hw, where)


def _get(record: Any, key: str, kind: type, where: str) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RisError(f"{where}: {key!r} must be of type {kind.__name__}, not {type(value).__name__}")
    return value
