"""What a record must be to be used, by one rule for all formats: boxes, masks, sizes, ids, sentences.

Every fault is a RisError that begins with where it is: the file, the ref and the image.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.arrays import Box
from ris_pipeline.datasets.io.files import MAX_PIXELS, is_turned
from ris_pipeline.datasets.io.segmentations import find_extent, is_coordinate
from ris_pipeline.errors import RisError

if TYPE_CHECKING:
    from ris_pipeline.datasets.records import Annotation, Image, Ref

# COCO rounds its boxes to hundredths, ReferIt's are whole pixels: an edge may lie up to a pixel outside.
_BOX_SLACK = 1.0
_LARGEST_ID = 2**63 - 1  # of the responses' int64
# How far a box may be from its mask's. COCO's polygons and boxes differ by up to 4.2 pixels in 717 refs looked at.
# Boxes drawn by hand are looser; more than this is another object, another order or another unit.
_MASK_SLACK_PIXELS = 8.0
_MASK_SLACK_SHARE = 0.05  # of the image's longer side, where the boxes share half of their union


def check_ref(ref: Ref, image: Image, where: str) -> None:
    """Raise RisError, beginning with `where`, for a ref that no stage can use, whatever its format.

    Such are blank sentences, a mask that is empty or does not fit the image, and a box without area, in shares of the
    image instead of pixels, or far from that of the mask.
    """
    for expression in ref.expressions:
        if not expression.sentence.strip():
            raise RisError(f"{where}: its sentence {expression.sent_id} is empty")
    for annotation in ref.annotations:
        _check_annotation(annotation, image.hw, where)


def _check_annotation(annotation: Annotation, hw: tuple[int, int] | None, where: str) -> None:
    box, written = annotation.edges_xyxy, annotation.box_xyxy
    if box is not None and (box[2] <= box[0] or box[3] <= box[1]):
        raise RisError(f"{where}: its box {box} has no area")
    if written is not None and max(written) <= 1 and (hw is None or max(hw) > 2):
        raise RisError(f"{where}: its box {written} is in shares of the image; it must be in pixels")
    if annotation.segmentation is None or hw is None or isinstance(annotation.segmentation, Path):
        return
    try:
        extent = find_extent(annotation.segmentation, hw)
    except ValueError as error:
        raise RisError(f"{where}: bad segmentation: {error}") from error
    check_extent(box, extent, hw, where)


def check_size(image: Image, hw: tuple[int, int]) -> None:
    """Raise RisError where the picture has another (height, width) than its record says."""
    if image.hw is None or image.hw == hw:
        return
    line = f"{image.path} has {hw[1]}×{hw[0]} pixels, its record says {image.hw[1]}×{image.hw[0]}"
    if image.hw == hw[::-1] and is_turned(image.path):
        raise RisError(
            f"{line}: its EXIF orientation turns it, and the annotations are of the turned picture; "
            "save it turned, without the orientation"
        )
    raise RisError(f"{line}: boxes and masks would not fit; put the original image there, or scale the annotations")


def check_extent(box: Box | None, extent: Box | None, hw: tuple[int, int], where: str) -> None:
    """Raise RisError where a mask is empty (its `extent` None) or does not span the object's box, up to a tolerance.

    `box`: with right and bottom one past it, None where there is none. Each edge may be off by 8 pixels, or by 5 % of
    the image's longer side where the boxes share half of their union.
    """
    if extent is None:
        raise RisError(f"{where}: its mask is empty")
    if box is None:
        return
    apart = max(abs(a - b) for a, b in zip(box, extent, strict=True))
    if apart <= _MASK_SLACK_PIXELS or (apart <= _MASK_SLACK_SHARE * max(hw) and _share(box, extent) >= 0.5):
        return
    of_box, of_mask = (", ".join(f"{value:g}" for value in edges) for edges in (box, extent))
    raise RisError(
        f"{where}: its box spans ({of_box}), its mask ({of_mask}): are both of one object, the box in pixels and in "
        "its format's order, and the run lengths down the columns?"
    )


def _share(a: Box, b: Box) -> float:
    """Return intersection over union of two boxes of some area."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def parse_box(values: Any, hw: tuple[int, int] | None, where: str) -> Box:
    """Return the box (left, top, right, bottom) in pixels, checked.

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
    """Return an image's height and width from its record. Raises RisError for none, and for more than MAX_PIXELS."""
    if type(height) is not int or type(width) is not int or height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RisError(f"{where}: its size must be whole numbers of at most {MAX_PIXELS:,} pixels in all")
    return height, width


def check_id(number: Any, what: str) -> None:
    """Raise RisError, beginning with `what`, for an id that is no whole number from 0 to 2^63 − 1."""
    if type(number) is not int or not 0 <= number <= _LARGEST_ID:
        raise RisError(f"{what} {number!r:.80} must be a whole number from 0 to {_LARGEST_ID}")
