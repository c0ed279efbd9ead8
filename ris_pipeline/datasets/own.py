"""Own images and sentences in the forms in which people have them, as records of the pairs format.

A table (CSV, TSV or JSON lines), a folder of images with a text file beside each, COCO's JSON with a text on its
annotations, or a folder of LabelMe's JSON.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import PIL.Image
import PIL.ImageDraw

from ris_pipeline.artifacts.files import make_folder, replacing, write_bytes
from ris_pipeline.datasets.io.files import load_json, read_limited
from ris_pipeline.datasets.io.segmentations import load_segmentation
from ris_pipeline.errors import RisError

# Of images. What Pillow does not read is refused by name where it is opened: HEIC, without a plug-in.
SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TABLES = (".csv", ".jsonl", ".tsv")
# What the columns of a table and the fields of a JSON are called.
_NAMES = {
    "image": ("image", "file_name", "filename", "file", "image_path", "path"),
    "sentence": ("sentence", "sentences", "text", "expression", "caption", "phrase", "query", "prompt", "description"),
    "ref": ("ref", "object"),
    "split": ("split",),
    "mask": ("mask",),
    "box": ("box",),
}
PAIRS = "pairs.jsonl"
_SPLITS = ("train", "val", "test", "testA", "testB")

Record = dict[str, Any]


def read_own(source: Path, images: Path | None = None) -> tuple[Path, list[Record]]:
    """Return the folder of the images, and a record per sentence: image (its name there), ref, sentence, split.

    A record may have a box (left, top, right, bottom in pixels), a mask (a file beside a table), or a segmentation
    (COCO's, with the image's "hw"). images: the folder, where it is not the source's own. Without names of refs each
    sentence is a ref of its own. Raises RisError for a source that has no sentence, or one that cannot be read.
    """
    if not source.exists():
        raise RisError(f"{source}: no such file or folder")
    if source.is_dir():
        folder = images or source
        records = list(_read_texts(folder)) or list(_read_labelme(source, folder))
        wanted = "text files beside its images (name.jpg and name.txt), or LabelMe's JSON"
    elif source.suffix.lower() == ".json":
        folder = images or (source.parent / "images" if (source.parent / "images").is_dir() else source.parent)
        records = list(_read_coco(source))
        wanted = f"text on its annotations ({', '.join(_NAMES['sentence'])})"
    else:
        folder = images or source.parent
        records = [{"split": "train", **record, "image": _relative(record["image"], folder, source)}
                   for record in read_table(source)]  # fmt: skip
        wanted = "rows"
    if not records:
        raise RisError(f"{source} has no {wanted}")
    return folder, [{**record, "ref": record.get("ref") or record["sentence"]} for record in records]


def read_table(path: Path) -> list[Record]:
    """Return the rows of a CSV or TSV file with a heading, or of JSON lines; "-" is the standard input.

    Each has an image and a sentence; ref, split, mask and box where they are there. Raises RisError that names the
    line of a row without the two.
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else read_limited(path)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RisError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    rows = _split_json(text, path) if text.lstrip().startswith("{") else _split_csv(text, path)
    return [_rename(row, f"{path}:{number}") for number, row in rows]


def _split_csv(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = text.splitlines()
    if not lines:
        return
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    if missing := [key for key in ("image", "sentence") if not set(_NAMES[key]) & {*_fold(reader.fieldnames or ())}]:
        raise RisError(f"{path}: its first line must name the columns, {' and '.join(missing)} among them")
    try:
        for row in reader:
            if None in row:
                raise RisError(
                    f"{path}:{reader.line_num}: more cells than columns; put text with {delimiter!r} in quotes"
                )
            yield reader.line_num, dict(zip(_fold(row), row.values(), strict=True))
    except csv.Error as error:
        raise RisError(f"{path}:{reader.line_num}: {error}") from error


def _fold(names: Sequence[Any] | Mapping[Any, Any]) -> list[str]:
    return [str(name).strip().casefold() for name in names]


def _split_json(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RisError(f"{path}:{number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise RisError(f'{path}:{number}: expected {{"image": …, "sentence": …}}')
        yield number, row


def _rename(row: Mapping[str, Any], where: str) -> Record:
    """Return the row by the names of the pairs format, without what is empty."""
    found = ((key, next((row[name] for name in names if row.get(name)), None)) for key, names in _NAMES.items())
    record: Record = {key: value.strip() if isinstance(value, str) else value for key, value in found}
    for key in ("image", "sentence"):
        if not isinstance(record[key], str) or not record[key]:
            raise RisError(f"{where}: there is no {key}")
    if isinstance(record["box"], str):
        record["box"] = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", record["box"])]
    return {key: value for key, value in record.items() if value}


def _relative(image: str, folder: Path, source: Path) -> str:
    """Return the image's name in the folder; a table may have absolute paths, or those from where it is read."""
    path = Path(image)
    for place in (folder.absolute(), folder):
        if path.is_relative_to(place):
            return path.relative_to(place).as_posix()
    if path.is_absolute():
        raise RisError(f"{source}: {image} is not in {folder}; name the images' folder by --images")
    return path.as_posix()


def _read_texts(folder: Path) -> Iterator[Record]:
    """Yield a record for each line of the text file beside an image; folders may be called as splits."""
    for path in sorted(folder.rglob("*")):
        text = path.with_suffix(".txt")
        if path.suffix.lower() not in SUFFIXES or not text.is_file():
            continue
        name = path.relative_to(folder)
        try:
            lines = read_limited(text).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RisError(f"{text} cannot be read as UTF-8 text ({error})") from error
        for line in lines:
            if line.strip():
                yield {"image": name.as_posix(), "sentence": line.strip(), "split": _split_of(name)}


def _split_of(name: PurePath) -> str:
    return name.parts[0] if name.parts[0] in _SPLITS else "train"


def _read_coco(source: Path) -> Iterator[Record]:
    """Yield a record for each text of each annotation of a file in COCO's form."""
    content = load_json(source)
    try:
        images = {image["id"]: image for image in content["images"]}
        annotations = list(content["annotations"])
    except (KeyError, TypeError) as error:
        raise RisError(f"{source} has not COCO's form: 'images' with ids, and 'annotations'") from error
    for number, annotation in enumerate(annotations):
        ref = str(annotation.get("id", number))
        texts = list(_texts_of(annotation))
        image = images.get(annotation.get("image_id"), {})
        if texts and not isinstance(image.get("file_name"), str):
            where = f"{source}: annotation {ref}"
            raise RisError(f"{where}: its image {annotation.get('image_id')!r} is not in the file, or has no file_name")
        for text in texts:
            split = annotation.get("split") or image.get("split") or "train"
            record = {"image": image["file_name"], "ref": ref, "sentence": text, "split": split}
            box = annotation.get("bbox")
            if isinstance(box, list) and len(box) == 4:
                record["box"] = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
            if annotation.get("segmentation") and image.get("height") and image.get("width"):
                record |= {"segmentation": annotation["segmentation"], "hw": (image["height"], image["width"])}
            yield record


def _texts_of(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of an annotation: one, a list of them, or a list of records as REFER's."""
    found = next((record[name] for name in _NAMES["sentence"] if record.get(name)), ())
    for text in [found] if isinstance(found, str) else found:
        text = text.get("sent") or text.get("raw") if isinstance(text, dict) else text
        if isinstance(text, str) and text.strip():
            yield text.strip()


def _read_labelme(source: Path, folder: Path) -> Iterator[Record]:
    """Yield a record for each shape of LabelMe's files, and for each line of its description, else for its label."""
    for path in sorted(source.rglob("*.json")):
        content = load_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            continue
        image = (path.parent / str(content.get("imagePath", "")).replace("\\", "/")).resolve()
        name = PurePath(_relative(str(image), folder.resolve(), path))
        for number, shape in enumerate(content["shapes"], start=1):
            points = shape.get("points") or []
            xs, ys = [point[0] for point in points], [point[1] for point in points]
            record: Record = {
                "image": name.as_posix(),
                "ref": f"{shape.get('label')} {number}",
                "split": _split_of(name),
            }
            if len(points) > 1:
                record["box"] = [min(xs), min(ys), max(xs), max(ys)]
            if len(points) > 2 and content.get("imageHeight") and content.get("imageWidth"):
                corners = [value for point in points for value in point]
                record |= {"segmentation": [corners], "hw": (content["imageHeight"], content["imageWidth"])}
            for text in (shape.get("description") or shape.get("label") or "").splitlines():
                if text.strip():
                    yield {**record, "sentence": text.strip()}


def draw_example(folder: Path) -> list[Record]:
    """Write two pictures of a circle and a square, and return the records of their sentences: of train, and of val."""
    records = []
    for split, sides in (("train", ("left", "right")), ("val", ("right", "left"))):
        picture = PIL.Image.new("RGB", (160, 120), "white")
        draw = PIL.ImageDraw.Draw(picture)
        image = f"example-{split}.png"
        for side, shape, colour in zip(sides, ("circle", "square"), ("red", "blue"), strict=True):
            left = 20 if side == "left" else 100
            box = [left, 40, left + 40, 80]
            paint = draw.ellipse if shape == "circle" else draw.rectangle
            paint((left, 40, left + 39, 79), fill=colour)
            for sentence in (f"the {colour} {shape}", f"the {shape} on the {side}"):
                records.append({"image": image, "ref": shape, "sentence": sentence, "split": split, "box": box})
        with replacing(folder / image, fsync=False) as file:
            picture.save(file, format="PNG")
    return records


def write_own(records: Sequence[Record], folder: Path, name: str, data_root: Path) -> Path:
    """Write the card <data root>/<name>.toml, <name>/pairs.jsonl and the mask PNGs, and return the card's path.

    folder: of the images, which stay where they are. Raises RisError where a segmentation cannot be drawn.
    """
    place = data_root / name
    make_folder(place)
    lines = []
    drawn: dict[tuple[str, str], str] = {}  # (image, ref): its mask
    for record in records:
        line = {key: value for key, value in record.items() if key not in ("segmentation", "hw")}
        if "segmentation" in record:
            key = record["image"], record["ref"]
            if key not in drawn:
                drawn[key] = f"masks/{len(drawn):06}.png"
                _draw(record, place / drawn[key])
            line["mask"] = drawn[key]
        lines.append(json.dumps(line, ensure_ascii=False))
    write_bytes(place / PAIRS, ("\n".join(lines) + "\n").encode())
    splits = sorted({record["split"] for record in records}, key=lambda split: [*_SPLITS, split].index(split))
    resolved, root = folder.resolve(), data_root.resolve()
    images = resolved.relative_to(root) if resolved.is_relative_to(root) else resolved
    card = [
        '# Own images and sentences. data/README.md, "Writing a card", has all that may stand here.',
        f'name = "{name}"', 'format = "pairs"', f'annotations = "{name}"',
        f"images = {json.dumps(images.as_posix(), ensure_ascii=False)}", "", "[splits]",
        *(f'{json.dumps(split)} = "any"' for split in splits),
    ]  # fmt: skip
    path = data_root / f"{name}.toml"
    write_bytes(path, ("\n".join(card) + "\n").encode())
    return path


def _draw(record: Record, path: Path) -> None:
    """Write the segmentation as a mask PNG, 0 where the object is not."""
    try:
        mask = load_segmentation(record["segmentation"], record["hw"])
    except (ValueError, TypeError) as error:
        raise RisError(f"ref {record['ref']!r} of {record['image']}: bad segmentation: {error}") from error
    path.parent.mkdir(exist_ok=True)
    with replacing(path, fsync=False) as file:
        PIL.Image.fromarray(mask.astype("uint8") * 255).save(file, format="PNG")
