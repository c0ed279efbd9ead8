"""Reader of the parquet files of the Hugging Face hub, in the three layouts that RefCOCO has there.

jxu124/refcoco, refcocoplus, refcocog: a row per ref; `raw_anns` and `raw_image_info` are COCO's records as JSON, and
the images are COCO's train2014. lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg: a row per ref with the image's bytes, its
sentences in `answer`, a box x, y, w, h and one polygon. moondream/refcoco-m: a row per image with its bytes, and
`samples`, each an object with sentences and run lengths.

The images inside are written to the card's folder by `unpack_images` once. An id that a file lacks is a hash of names.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import replacing
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.formats import refer
from ris_pipeline.datasets.io.files import check_kind, read_size, resolve_inside
from ris_pipeline.datasets.record_checks import check_ref, parse_hw
from ris_pipeline.datasets.records import Annotation, Image, Reading, Ref, hash_expressions, hash_names
from ris_pipeline.errors import RisError

_REFER = ("ref_id", "ann_id", "image_id", "category_id", "split", "sentences", "raw_anns", "raw_image_info")
_ANSWERS = ("question_id", "answer", "segmentation", "bbox", "iscrowd", "file_name")
_SAMPLES = ("image_id", "file_name", "samples")
_OTHER_NAMES = {"val": "validation"}  # of splits, in the files' names
_SUFFIX = re.compile(r"(COCO_\w+_\d{12})_\d+(\.\w+)")  # REFER's file names carry the annotation's number
_ROWS = 256  # read at once


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the parquet files in the card's folder and those below it, or the first of the usual names."""
    folder = data_root / card.annotations
    return sorted(folder.rglob("*.parquet")) or [folder / "data" / f"{next(iter(card.splits))}-00000-of-00001.parquet"]


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of the split in the files' order, with their images, and what cannot be used.

    Raises RisError where a file cannot be read at all, is in none of the layouts, or pyarrow is not installed.
    """
    files = list_files(card, data_root)
    columns = _read_columns(files[0])
    if set(_REFER) <= columns:
        return _read_refer(files, card, data_root, split)
    for layout, parse in ((_SAMPLES, _parse_samples), (_ANSWERS, _parse_answers)):
        if set(layout) <= columns:
            reading = Reading()
            seen: Counter[tuple[Any, ...]] = Counter()
            for path in _files_of_split(files, split):
                for n, row in enumerate(_read_rows(path, layout)):
                    where = f"{path}: row {n}"
                    with reading.record() as names:
                        name = _image_name(row["file_name"])
                        image_path = resolve_inside(data_root / card.images, name, where)
                        names.append(name)
                        parse(row, split, image_path, reading, seen, where)
            return reading
    raise RisError(
        f"{files[0]}: its columns {', '.join(sorted(columns))} are in none of the known layouts (jxu124/refcoco, "
        "lmms-lab/RefCOCO, moondream/refcoco-m)"
    )


def unpack_images(card: Card, data_root: Path) -> Iterator[Path]:
    """Write the images that the files hold to the card's folder, those that are there excepted; yield each path.

    Raises RisError where the files hold none, or cannot be read.
    """
    for path in list_files(card, data_root):
        if "image" not in _read_columns(path):
            raise RisError(f"{path} holds no images; put them into {data_root / card.images}")
        for n, row in enumerate(_read_rows(path, ("file_name", "image"))):
            where = f"{path}: row {n}"
            target = resolve_inside(data_root / card.images, _image_name(row["file_name"]), where)
            content = row["image"].get("bytes") if isinstance(row["image"], dict) else None
            if not isinstance(content, bytes):
                raise RisError(f"{where}: it has no bytes of an image; fetch it again")
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target, fsync=False) as file:
                    file.write(content)
            yield target


def _read_refer(files: Sequence[Path], card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of rows that are REFER's records, each with its annotation and image as JSON."""
    records: list[dict[str, Any]] = []
    instances = refer.Instances(files[0], {}, {})
    for path in files:
        for n, row in enumerate(_read_rows(path, _REFER)):
            where = f"{path}: row {n}"
            annotation, image = (_parse_json(row.pop(key), key, where) for key in ("raw_anns", "raw_image_info"))
            # Only what is referred to is here, so that nothing can be said of an image's other objects.
            annotation.pop("category_id", None)
            instances.annotations[annotation.get("id")] = annotation
            instances.images[image.get("id")] = image
            records.append(row)
    return refer.read_refs(records, files[0], instances, card, split, lambda name: data_root / card.images)


def _parse_answers(
    row: dict[str, Any], split: str, path: Path, reading: Reading, seen: Counter[tuple[Any, ...]], where: str
) -> None:
    """Add the ref of a row of lmms-lab's layout: one object, one polygon, the size only in the image."""
    image = reading.images.get(image_id := _image_id(path.name)) or Image(image_id, path, _find_size(path))
    sentences = _parse_sentences(row["answer"], where)
    key = path.name, str(row["question_id"]), *sentences
    ref_id = hash_names(*key, str(seen[key]))
    seen[key] += 1
    box = refer.parse_box_xywh(row["bbox"], image.hw, where)
    # Of a crowd there are run lengths, for which the column is too narrow.
    polygon = None if row["iscrowd"] else [[float(v) for v in row["segmentation"] or ()]]
    ref = Ref(ref_id, image_id, split, hash_expressions([str(ref_id)], sentences), (Annotation(box, polygon),))
    try:
        _add(ref, image, reading, where)
    except RisError:  # an object of several parts, of which the column has one
        _add(replace(ref, annotations=(Annotation(box),)), image, reading, where)
        reading.n_maskless += 1


def _parse_samples(
    row: dict[str, Any], split: str, path: Path, reading: Reading, seen: Counter[tuple[Any, ...]], where: str
) -> None:
    """Add the refs of a row of RefCOCO-M's layout: an image with its objects."""
    for sample in row["samples"] or ():
        ref_id, mask = sample["id"], sample["mask"]
        place = f"{where}: sample {ref_id}"
        with reading.record(ref_id, path.name):
            height, width = mask["size"] if mask and len(mask["size"] or ()) == 2 else (None, None)
            image = Image(row["image_id"], path, parse_hw(height, width, place))
            sentences = _parse_sentences(sample["sentences"], place)
            annotation = Annotation(refer.parse_box_xywh(sample["bbox"], image.hw, place), mask)
            _add(
                Ref(ref_id, image.image_id, split, hash_expressions([str(ref_id)], sentences), (annotation,)),
                image,
                reading,
                place,
            )


def _add(ref: Ref, image: Image, reading: Reading, where: str) -> None:
    check_ref(ref, image, f"{where}, image {image.path.name}")
    reading.images.setdefault(image.image_id, image)
    reading.refs.append(ref)


def _parse_sentences(sentences: Any, where: str) -> list[str]:
    if not sentences or not all(isinstance(sentence, str) for sentence in sentences):
        raise RisError(f"{where}: it has no sentences")
    return list(sentences)


def _parse_json(text: Any, column: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise RisError(f"{where}: {column!r} is not valid JSON ({error}); fetch it again") from error
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or type(value.get("id")) is not int:
        raise RisError(f"{where}: {column!r} is not a record of COCO with an id; fetch it again")
    return value


def _image_name(name: Any) -> Any:
    return _SUFFIX.sub(r"\1\2", name) if isinstance(name, str) else name


def _image_id(name: str) -> int:
    """Return COCO's number of an image, or a hash of another name."""
    match = re.fullmatch(r"COCO_\w+_(\d{12})\.\w+", name)
    return int(match[1]) if match else hash_names(name)


def _find_size(path: Path) -> tuple[int, int] | None:
    """Return height and width of the picture; None for a missing or bad file, reported later."""
    try:
        return read_size(path)
    except RisError:
        return None


def _files_of_split(files: Sequence[Path], split: str) -> list[Path]:
    """Return the files whose names begin with the split's, as val-00000-of-00002.parquet or validation.parquet."""
    names = {split, _OTHER_NAMES.get(split, split)}
    return [path for path in files if re.split(r"[-.]", path.name)[0] in names]


def _read_columns(path: Path) -> set[str]:
    return set(_open(path).schema_arrow.names)


def _read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with these columns. Raises RisError where it is damaged."""
    file = _open(path)
    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise RisError(f"{path} is damaged ({error}); fetch it again") from error


def _open(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise RisError(
            f"{path}: parquet files are read by pyarrow: pip install -c constraints.txt -e '.[parquet]'"
        ) from error
    try:
        with path.open("rb") as start:
            check_kind(path, start.read(1000))
        return ParquetFile(path)
    except (OSError, ValueError) as error:
        raise RisError(f"{path} is not a readable parquet file ({error}); fetch it again") from error
