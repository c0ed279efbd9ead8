"""Which images of a data set a list names, such as the images that a network was trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ris_pipeline.datasets.io.files import load_json, read_limited
from ris_pipeline.datasets.records import Dataset
from ris_pipeline.errors import RisError

_SUFFIX = re.compile(r"\.(avif|bmp|gif|jfif|jpe?g|png|tiff?|webp)$")
_NUMBER = re.compile(r"(?:coco_(?:train|val|test)\d{4}_)?0*(\d+)")


def read_image_list(path: Path) -> frozenset[str]:
    """Return the keys (see `key_of`) of the images that a file lists.

    Either text with a name or number a line (# begins a remark), or JSON: a list of them, COCO's "images" with their
    file names, or records with the image's number in COCO ("coco_id"), as Visual Genome's. Raises RisError where the
    file cannot be read or lists nothing.
    """
    entries: Iterable[Any]
    if path.suffix == ".json":
        content = load_json(path)
        entries = content.get("images", ()) if isinstance(content, dict) else content
        if not isinstance(entries, list):
            raise RisError(f'{path} must be a list of images, or have one as "images"')
        entries = [_name_of(entry) for entry in entries]
    else:
        try:
            lines = read_limited(path).decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RisError(f"{path} cannot be read as a list of images ({error})") from error
        entries = [line.strip() for line in lines if not line.startswith("#")]
    keys = frozenset(key_of(str(entry)) for entry in entries if entry not in (None, ""))
    if not keys:
        raise RisError(f"{path} lists no image; give a name or number a line, or COCO's JSON")
    return keys


def find_listed(dataset: Dataset, keys: frozenset[str]) -> list[str]:
    """Return the names of the data set's images whose keys are among `keys`."""
    return [image.path.name for image in dataset.images.values() if key_of(image.path.name) in keys]


def key_of(name: str) -> str:
    """Return what an image is known by: its name without folder, suffix and case; of COCO's and other numbers that.

    So COCO_train2014_000000581857.jpg, 000000581857.jpg of the releases since 2017, and 581857 are one image.
    """
    stem = _SUFFIX.sub("", name.replace("\\", "/").rpartition("/")[2].casefold())
    number = _NUMBER.fullmatch(stem)
    return number[1] if number else stem


def _name_of(entry: Any) -> Any:
    """Return the name or number in an entry of a JSON list, None where it has none."""
    if not isinstance(entry, dict):
        return entry
    return entry.get("coco_id") if "coco_id" in entry else entry.get("file_name", entry.get("id"))
