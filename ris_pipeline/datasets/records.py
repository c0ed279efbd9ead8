"""The records of a data set: images, refs (one object each) and the expressions that name them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris_pipeline.datasets.io.files import MAX_PIXELS
from ris_pipeline.datasets.io.segmentations import is_coordinate, load_segmentation
from ris_pipeline.errors import RisError

Box = tuple[float, float, float, float]

# COCO rounds its boxes to hundredths, ReferIt's are whole pixels: an edge may lie up to a pixel outside.
_BOX_SLACK = 1.0
_LARGEST_ID = 2**63 - 1  # of the responses' int64


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence that refers to an object."""

    sent_id: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Image:
    """One image file; hw is (height, width), None where only opening the file would tell."""

    image_id: int
    path: Path
    hw: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Ref:
    """One object in one image, with every expression that refers to it.

    split: as its file names it (ReferIt's "val" is part of the paper's "train").
    box_xyxy: left, top, right, bottom in pixels, as annotated. segmentation: COCO polygons, one RLE or
    several, or the path of a mask PNG; decoded by Dataset.load_mask only when asked for.
    n_same_kind: annotated objects of the ref's category in its image, itself counted; None where the
    annotations have no categories. Reports break scores down by it; nothing learns from it.
    """

    ref_id: int
    image_id: int
    split: str
    expressions: tuple[Expression, ...]
    box_xyxy: Box | None
    segmentation: Any | None
    n_same_kind: int | None = None


@dataclass(frozen=True)
class Dataset:
    """One split of a data set. Raises RisError where an id occurs twice or an image is not listed."""

    name: str
    split: str
    images: dict[int, Image]
    refs: tuple[Ref, ...]

    def __post_init__(self) -> None:
        where = f"{self.name} {self.split}"
        _check_unique((ref.ref_id for ref in self.refs), f"{where}: ref_id")
        _check_unique((e.sent_id for ref in self.refs for e in ref.expressions), f"{where}: sent_id")
        for ref in self.refs:
            if ref.image_id not in self.images:
                raise RisError(f"{where}: ref {ref.ref_id} names image {ref.image_id}, which is not listed")

    @property
    def n_expressions(self) -> int:
        """The number of expressions, the sample count of the paper's tables."""
        return sum(len(ref.expressions) for ref in self.refs)

    def load_mask(self, ref: Ref) -> NDArray[np.bool_]:
        """The object's mask, bool (H, W), True on the object.

        Raises RisError where the ref has no mask or one that cannot be decoded.
        """
        image = self.images[ref.image_id]
        where = f"{self.name} {self.split}: ref {ref.ref_id}, image {image.path.name}"
        if ref.segmentation is None:
            raise RisError(f"{where}: there is no mask; score it with a metric that needs boxes only")
        try:
            return load_segmentation(ref.segmentation, image.hw)
        except ValueError as error:
            raise RisError(f"{where}: bad segmentation: {error}") from error

    def siblings(self, ref: Ref) -> tuple[Ref, ...]:
        """The other refs of the ref's image, in the order of the data set."""
        return tuple(other for other in self.refs_of_image[ref.image_id] if other.ref_id != ref.ref_id)

    @cached_property
    def refs_of_image(self) -> dict[int, tuple[Ref, ...]]:
        """The refs of each image by its id, both in the order of the data set."""
        refs_of_image: defaultdict[int, list[Ref]] = defaultdict(list)
        for ref in self.refs:
            refs_of_image[ref.image_id].append(ref)
        return {image_id: tuple(refs) for image_id, refs in refs_of_image.items()}


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """One image, its refs, and the rows that their sentences take in the responses."""

    image_id: int
    refs: tuple[Ref, ...]
    rows: range

    @property
    def sentences(self) -> list[str]:
        """The sentences of all refs, in row order."""
        return [expression.sentence for ref in self.refs for expression in ref.expressions]

    @property
    def ref_ids(self) -> list[int]:
        """The ref of each row."""
        return [ref.ref_id for ref in self.refs for _ in ref.expressions]


def group_by_image(dataset: Dataset) -> list[ImageGroup]:
    """Return each image with its refs, in the order of the images' first refs: the row order of the responses."""
    groups = []
    start = 0
    for image_id, refs in dataset.refs_of_image.items():
        stop = start + sum(len(ref.expressions) for ref in refs)
        groups.append(ImageGroup(image_id, refs, range(start, stop)))
        start = stop
    return groups


@contextmanager
def noting(faults: list[str] | None) -> Iterator[None]:
    """Around the reading of one record: a RisError is added to `faults` and the record left out; None: it is raised."""
    try:
        yield
    except RisError as error:
        if faults is None:
            raise
        faults.append(str(error))


def parse_box(values: Any, hw: tuple[int, int] | None, where: str) -> Box:
    """The box (left, top, right, bottom) in pixels, checked.

    hw: the image's size, None where it is not known: then only the near edges can be checked.
    Raises RisError, beginning with `where` (the file, the ref and the image), for anything but four
    finite numbers in order and inside the image.
    """
    if not isinstance(values, (list, tuple)) or len(values) != 4 or not all(map(is_coordinate, values)):
        raise RisError(f"{where}: the box must be four numbers, not {values!r:.200}")
    x1, y1, x2, y2 = (float(v) for v in values)
    if x2 < x1 or y2 < y1:
        raise RisError(f"{where}: the box {values} ends before it begins (it must be left, top, right, bottom)")
    height, width = hw if hw is not None else (math.inf, math.inf)
    if min(x1, y1) < -_BOX_SLACK or x2 > width + _BOX_SLACK or y2 > height + _BOX_SLACK:
        size = "" if hw is None else f" of {width}×{height} pixels"
        raise RisError(f"{where}: the box {values} lies outside the image{size}")
    return x1, y1, x2, y2


def parse_hw(height: Any, width: Any, where: str) -> tuple[int, int]:
    """An image's height and width from its record. Raises RisError for none, and for more than MAX_PIXELS."""
    if type(height) is not int or type(width) is not int or height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RisError(f"{where}: its size must be whole numbers of at most {MAX_PIXELS:,} pixels in all")
    return height, width


def _check_unique(ids: Iterable[int], what: str) -> None:
    seen: set[int] = set()
    for one in ids:
        if type(one) is not int or not 0 <= one <= _LARGEST_ID:
            raise RisError(f"{what} {one!r:.80} must be a whole number from 0 to {_LARGEST_ID}")
        if one in seen:
            raise RisError(f"{what} {one} occurs twice; ids must be unique")
        seen.add(one)
