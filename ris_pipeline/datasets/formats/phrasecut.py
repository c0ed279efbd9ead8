"""Reader of VGPhraseCut: phrases about one or several instances, as polygons, on images of Visual Genome.

`refer_<split>.json` has a task per phrase: task_id, image_id, phrase, and Polygons, a list of polygons of [x, y] for
each instance. Its boxes are those of the polygons. Layout: utils/refvg_loader.py of
github.com/ChenyunWu/PhraseCutDataset.

The masks are filled as COCO's; PhraseCut's evaluator draws whole pixels with PIL, outline included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import load_json, resolve_inside
from ris_pipeline.datasets.io.segmentations import find_extent
from ris_pipeline.datasets.record_checks import check_ref, parse_hw
from ris_pipeline.datasets.records import Annotation, Expression, Image, Reading, Ref, hash_names
from ris_pipeline.errors import RisError


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the files that hold the annotations: of the images, and of the phrases of the splits that are there."""
    folder = data_root / card.annotations
    phrases = [folder / f"refer_{split}.json" for split in card.splits]
    return [folder / "image_data_split.json", *([path for path in phrases if path.is_file()] or phrases)]


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the phrases of the split as refs, with their images, and what cannot be used.

    An id is a hash of the task's. Raises RisError where a file cannot be read at all.
    """
    folder = data_root / card.annotations
    path = folder / f"refer_{split}.json"
    if not path.is_file():
        return Reading()
    sizes = {record.get("image_id"): record for record in _load_list(folder / "image_data_split.json")}
    reading = Reading()
    for position, task in enumerate(_load_list(path)):
        task_id = task.get("task_id", f"number {position}")
        where = f"{path}: task {task_id}"
        with reading.record(task_id) as names:
            image_id = task.get("image_id")
            if type(image_id) is not int or image_id not in sizes:
                raise RisError(f"{where}: its image {image_id!r:.80} is not in image_data_split.json")
            names.append(f"{image_id}.jpg")
            record = sizes[image_id]
            hw = parse_hw(record.get("height"), record.get("width"), where)
            image = Image(image_id, resolve_inside(data_root / card.images, f"{image_id}.jpg", where), hw)
            ref = _parse_task(task, image, split, where)
            check_ref(ref, image, f"{where}, image {image.path.name}")
            reading.images.setdefault(image_id, image)
            reading.refs.append(ref)
    return reading


def _parse_task(task: dict[str, Any], image: Image, split: str, where: str) -> Ref:
    task_id, phrase, instances = task.get("task_id"), task.get("phrase"), task.get("Polygons")
    if not isinstance(task_id, str) or not isinstance(phrase, str) or not isinstance(instances, list):
        raise RisError(f"{where}: it must have a task_id and a phrase, as text, and a list of Polygons")
    annotations = tuple(
        _parse_instance(polygons, image, where) for polygons in map(_flatten, instances) if polygons is not None
    )
    if not annotations:
        raise RisError(f"{where}: none of its polygons has three corners")
    expressions = (Expression(hash_names(task_id, phrase), phrase),)
    return Ref(hash_names(task_id), image.image_id, split, expressions, annotations, name=task_id)


def _flatten(polygons: Any) -> Any:
    """Return an instance's polygons as COCO has them, [x1, y1, …]; None where none of them has three corners."""
    try:
        flat = [[value for x, y in polygon for value in (x, y)] for polygon in polygons]
    except (TypeError, ValueError):
        return polygons  # refused where it is parsed
    return [polygon for polygon in flat if len(polygon) >= 6] or None


def _parse_instance(polygons: Any, image: Image, where: str) -> Annotation:
    assert image.hw is not None
    height, width = image.hw
    try:
        left, top, right, bottom = find_extent(polygons, image.hw)
    except ValueError as error:
        raise RisError(f"{where}: bad segmentation: {error}") from error
    return Annotation((max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)), polygons)


def _load_list(path: Path) -> list[dict[str, Any]]:
    records = load_json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RisError(f"{path} is not a list of records; fetch it again")
    return records
