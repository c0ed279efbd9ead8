"""Reader of ReasonSeg: an image and a JSON file of the same name, with sentences and polygons to find or to ignore.

Layout and rule: github.com/JIA-Lab-research/LISA, utils/data_processing.py. Shapes are painted from the largest to the
smallest, so that a small one counts where it lies on a large one; a label with "ignore" in it is ignored, "flag" is
no shape. Images are turned as EXIF says, as OpenCV reads them. The masks are filled as COCO's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ris_pipeline.arrays import FOREGROUND, IGNORE
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import check_kind, read_limited, read_size, resolve_inside
from ris_pipeline.datasets.io.segmentations import Rle, encode_rle, is_coordinate, load_segmentation
from ris_pipeline.datasets.record_checks import check_ref
from ris_pipeline.datasets.records import Annotation, Expression, Image, Reading, Ref, hash_names
from ris_pipeline.errors import RisError


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the JSON files in the splits' folders; these folders where there are none."""
    folders = [data_root / card.annotations / split for split in card.splits]
    return [path for folder in folders for path in sorted(folder.glob("*.json"))] or folders


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of the split, one for each image, and what cannot be used, as an image that is missing.

    An id is a hash of names.
    """
    reading = Reading()
    for path in sorted((data_root / card.annotations / split).glob("*.json")):
        name = f"{split}/{path.stem}.jpg"
        ref_id = hash_names(name)
        with reading.record(ref_id, name):
            image_path = resolve_inside(data_root / card.images, name, str(path))
            hw = read_size(image_path, upright=True)
            image = Image(ref_id, image_path, hw, upright=True)
            record = _load(path)
            target, ignored = _paint(record.get("shapes"), hw, str(path))
            expressions = _parse_sentences(record.get("text"), name, str(path))
            annotations = (Annotation(None, target),)
            ref = Ref(ref_id, ref_id, split, expressions, annotations, ignored, name=name)
            check_ref(ref, image, str(path))
            reading.images[ref_id] = image
            reading.refs.append(ref)
    return reading


def _paint(shapes: Any, hw: tuple[int, int], where: str) -> tuple[Rle, Rle | None]:
    """Return the run lengths of the target and of what is ignored, None for nothing."""
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise RisError(f"{where}: 'shapes' must be a list of polygons with labels")
    painted = []
    for shape in shapes:
        label, points = str(shape.get("label")).casefold(), _flatten(shape.get("points"), where)
        if label != "flag" and len(points) >= 6:  # two corners enclose nothing
            try:
                mask = load_segmentation([points], hw)
            except ValueError as error:
                raise RisError(f"{where}: bad segmentation: {error}") from error
            painted.append((int(mask.sum()), IGNORE if "ignore" in label else FOREGROUND, mask))
    canvas = np.zeros(hw, np.uint8)
    for _, value, mask in sorted(painted, key=lambda shape: -shape[0]):
        canvas[mask] = value
    ignored = canvas == IGNORE
    return encode_rle(canvas == FOREGROUND), encode_rle(ignored) if ignored.any() else None


def _flatten(points: Any, where: str) -> list[float]:
    """Return [[x, y], …] as [x, y, …]."""
    pairs: list[Any] = points if isinstance(points, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(is_coordinate, pair)) for pair in pairs):
        raise RisError(f"{where}: the points of a shape must be pairs of numbers")
    return [value for pair in pairs for value in pair]


def _parse_sentences(texts: Any, name: str, where: str) -> tuple[Expression, ...]:
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RisError(f"{where}: 'text' must be a list of sentences")
    return tuple(Expression(hash_names(name, str(n)), text) for n, text in enumerate(texts))


def _load(path: Path) -> dict[str, Any]:
    """Return a JSON file in UTF-8 or, as some of the release, in Windows' code page 1252."""
    try:
        data = read_limited(path)
        check_kind(path, data)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        record = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise RisError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(record, dict):
        raise RisError(f"{path} is not a table with 'text' and 'shapes'; fetch it again")
    return record
