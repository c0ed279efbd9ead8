"""Reader of the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, and the generated shapes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import load_json, resolve_inside
from ris_pipeline.datasets.io.pickles import load_plain_pickle
from ris_pipeline.datasets.io.segmentations import is_coordinate
from ris_pipeline.datasets.records import Box, Dataset, Expression, Image, Ref, noting, parse_box, parse_hw
from ris_pipeline.errors import RisError


def list_files(card: Card, data_root: Path) -> list[Path]:
    """The files that hold the annotations."""
    folder = data_root / card.annotations
    return [folder / f"refs({card.partition}).p", folder / "instances.json"]


def load_split(card: Card, data_root: Path, split: str, faults: list[str] | None = None) -> Dataset:
    """The refs of the split in the file's order, with their images.

    Raises RisError on any faulty record; where `faults` gather what is wrong, these records are left out.
    """
    refs_path, instances_path = list_files(card, data_root)
    records = load_plain_pickle(refs_path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RisError(f"{refs_path} is not a list of refs; fetch it anew")
    images, annotations = _index_instances(instances_path)
    n_of_kind = Counter(map(_kind_of, annotations.values()))
    chosen: dict[int, Image] = {}
    refs = []
    for position, record in enumerate(records):
        where = f"{refs_path}: ref {record.get('ref_id', f'number {position}')}"
        with noting(faults):
            ref_split = _get(record, "split", str, where)
            if not is_in_split(ref_split, split):
                continue
            image_id = _get(record, "image_id", int, where)
            if image_id not in chosen:
                if image_id not in images:
                    raise RisError(f"{where}: its image {image_id} is not in {instances_path}")
                chosen[image_id] = _parse_image(images[image_id], data_root / card.images, instances_path)
            refs.append(_parse_ref(record, chosen[image_id], annotations, n_of_kind, where))
    return Dataset(card.name, split, chosen, tuple(refs))


def is_in_split(ref_split: str, split: str) -> bool:
    """Whether a ref marked ref_split is in the split. REFER may mark one testAB, in both testA and testB."""
    if split in ("testA", "testB"):
        return split[-1] in ref_split
    if split == "test":
        return "test" in ref_split
    return ref_split == split


def _index_instances(path: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The records of instances.json by id: images, annotations."""
    instances = load_json(path)
    try:
        images = {int(record["id"]): record for record in instances["images"]}
        return images, {int(record["id"]): record for record in instances["annotations"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RisError(f"{path} lacks 'images' or 'annotations' with ids; fetch it anew") from error


def _parse_image(record: dict[str, Any], folder: Path, instances_path: Path) -> Image:
    image_id = record["id"]
    where = f"{instances_path}: image {image_id}"
    hw = parse_hw(record.get("height"), record.get("width"), where)
    # The image's own file name: the ref's carries the annotation's number and no such file exists.
    return Image(image_id, resolve_inside(folder, record.get("file_name"), where), hw)


def _kind_of(annotation: dict[str, Any]) -> tuple[str, str]:
    """The image and the category of an annotation, as text: foreign values need not be hashable."""
    return str(annotation.get("image_id")), str(annotation.get("category_id"))


def _parse_ref(
    record: dict[str, Any],
    image: Image,
    annotations: dict[Any, Any],
    n_of_kind: Counter[tuple[str, str]],
    where: str,
) -> Ref:
    sentences = _get(record, "sentences", list, where)
    if not sentences:
        raise RisError(f"{where}: its list of sentences is empty")
    annotation = annotations.get(_get(record, "ann_id", int, where))
    if annotation is None:
        raise RisError(f"{where}: its annotation {record.get('ann_id')} is not in instances.json")
    if annotation.get("image_id") != image.image_id:
        raise RisError(f"{where}: its annotation belongs to image {annotation.get('image_id')}, not {image.image_id}")
    return Ref(
        ref_id=_get(record, "ref_id", int, where),
        image_id=image.image_id,
        split=record["split"],
        expressions=tuple(
            Expression(_get(sentence, "sent_id", int, where), _get(sentence, "sent", str, where))
            for sentence in sentences
        ),
        box_xyxy=_parse_box_xywh(annotation.get("bbox"), image, where),
        segmentation=annotation.get("segmentation"),
        n_same_kind=n_of_kind[_kind_of(annotation)] if "category_id" in annotation else None,
    )


def _parse_box_xywh(values: Any, image: Image, where: str) -> Box:
    """The box as left, top, right, bottom.

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
