"""Masks as data sets store them: COCO polygons, run lengths, PNG files."""

from __future__ import annotations

import math
import re
from array import array
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ris_pipeline.arrays import BoolMask, Box
from ris_pipeline.datasets.io.files import MAX_PIXELS, load_picture


class Rle(TypedDict):
    """A mask in COCO's compressed run lengths, column by column; `size` is [H, W], `counts` ASCII."""

    size: list[int]
    counts: str


_LARGEST_COORDINATE = 2.0**31


def load_segmentation(segmentation: Any, hw: tuple[int, int] | None) -> BoolMask:
    """Return the mask, bool (H, W), True on the object: the union of all parts.

    segmentation: a list of COCO polygons [x1, y1, x2, y2, …], each a list or an array of doubles, one RLE
    {"size": [H, W], "counts": …} or a list of them, or the path of a one-channel PNG where anything but 0 is the
    object.
    hw: the image's size; polygons need it, RLEs and PNGs must agree with it.
    Raises ValueError where the segmentation is none of these, or RisError where the PNG cannot be read.

    Differs from TRIS: it keeps the pixels covered exactly once, so the overlap of two polygons is lost.
    """
    if isinstance(segmentation, Path):
        return _load_png(segmentation, hw)
    parts = _list_parts(segmentation)
    if all(isinstance(part, dict) for part in parts):
        masks = [_decode_rle(part, hw) for part in parts]
    else:
        masks = _decode_polygons(parts, hw)
    mask = masks[0]
    for other in masks[1:]:
        if other.shape != mask.shape:
            raise ValueError(f"its run lengths have different sizes, {mask.shape} and {other.shape}")
        mask = mask | other
    return mask


def find_extent(segmentation: Any, hw: tuple[int, int]) -> Box:
    """Return left, top, right, bottom of the mask in pixels, without decoding it; right and bottom are one past it.

    segmentation: polygons or run lengths, as in load_segmentation; the extent of polygons is that of their corners.
    Raises ValueError where they are broken or enclose nothing.
    """
    parts = _list_parts(segmentation)
    if all(isinstance(part, dict) for part in parts):
        extents = [_extent_of_runs(_parse_runs(part, hw), hw) for part in parts]
        found = [extent for extent in extents if extent is not None]
        if not found:
            raise ValueError("its run lengths hold no pixel of the object")
    else:
        found = [edges for _, edges in _parse_polygons(parts, hw)]
    left, top, right, bottom = zip(*found, strict=True)
    extent = min(left), min(top), max(right), max(bottom)
    if extent[2] - extent[0] <= 0 or extent[3] - extent[1] <= 0:
        raise ValueError("its polygons enclose nothing")
    return extent


def pack_polygons(record: dict[str, Any]) -> dict[str, Any]:
    """Return an annotation of COCO's JSON with the polygons of its segmentation as arrays, a quarter of the memory.

    What is no list of numbers stays as it is, for `find_extent` to complain about.
    """
    parts = record.get("segmentation")
    if isinstance(parts, list):
        record["segmentation"] = [_pack(part) for part in parts]
    return record


def _pack(part: Any) -> Any:
    if not isinstance(part, list) or not set(map(type, part)) <= {int, float}:
        return part
    try:
        return array("d", part)
    except OverflowError:
        return part


def read_rle_size(segmentation: Any) -> tuple[Any, Any] | None:
    """Return height and width as the (first) run lengths of a segmentation have them, unchecked; None without them."""
    rle = segmentation[0] if isinstance(segmentation, list) and segmentation else segmentation
    size = rle.get("size") if isinstance(rle, dict) else None
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


def encode_rle(mask: BoolMask) -> Rle:
    """Return the COCO run lengths of a bool mask (H, W), ready for JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def extent_of(mask: BoolMask) -> Box | None:
    """Return left, top, right, bottom of a mask (H, W), right and bottom one past it; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def _list_parts(segmentation: Any) -> list[Any]:
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"expected polygons, run lengths or a PNG, not {_shorten(segmentation)}")
    return parts


def _extent_of_runs(runs: list[int], hw: tuple[int, int]) -> Box | None:
    """Return left, top, right, bottom of the runs down the columns; None where they hold nothing of the object."""
    ends = np.cumsum(runs)
    starts, stops = ends[0:-1:2], ends[1::2]  # of the object's runs: first pixel, one past the last
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    if not len(starts):
        return None
    height = hw[0]
    first, last = starts // height, (stops - 1) // height  # columns
    # A run over the end of a column has the last row of one and the first of the next.
    crosses = bool((first != last).any())
    top = 0 if crosses else int((starts % height).min())
    bottom = height if crosses else int(((stops - 1) % height).max()) + 1
    return float(first.min()), float(top), float(last.max()) + 1, float(bottom)


def _load_png(path: Path, hw: tuple[int, int] | None) -> BoolMask:
    values: NDArray[np.generic] = load_picture(path, mode=None)
    if values.ndim != 2:
        raise ValueError(f"{path} has {values.shape[-1]} channels; a mask has one, 0 where the object is not")
    if hw is not None and values.shape != hw:
        raise ValueError(f"{path} has {values.shape[1]}×{values.shape[0]} pixels, the image has {hw[1]}×{hw[0]}")
    mask: BoolMask = values.astype(bool)
    return mask


def _decode_polygons(polygons: list[Any], hw: tuple[int, int] | None) -> list[BoolMask]:
    if hw is None:
        raise ValueError("polygons need the image's size, which is not known")
    kept = [polygon for polygon, _ in _parse_polygons(polygons, hw)]
    return [_decode_rle(rle, hw) for rle in coco_mask.frPyObjects(kept, *hw)]


def _parse_polygons(polygons: list[Any], hw: tuple[int, int]) -> list[tuple[array[float], Box]]:
    """Return the polygons of three corners and more, checked, and the extent of each.

    Without NumPy, which is slower on a few numbers: a data set has a hundred thousand, all read at once.
    """
    height, width = hw
    kept = []
    for polygon in polygons:
        if not isinstance(polygon := _pack(polygon), array) or len(polygon) % 2:
            raise ValueError(f"a polygon must be a list of x, y pairs, not {_shorten(polygon)}")
        if len(polygon) < 6:  # encloses nothing, and pycocotools would take four numbers for a box
            continue
        xs, ys = polygon[0::2], polygon[1::2]
        edges = min(xs), min(ys), max(xs), max(ys)
        is_near = -width <= edges[0] and -height <= edges[1] and edges[2] <= 2 * width and edges[3] <= 2 * height
        # pycocotools walks along every edge: one that ends far away would take all memory. With a NaN the sum is NaN.
        if not is_near or math.isnan(sum(polygon)):
            raise ValueError(f"a polygon lies far outside the image: {_shorten(polygon)}")
        kept.append((polygon, edges))
    if not kept:
        raise ValueError("no polygon has three corners")
    if max(hw) > 2 and max(max(edges) for _, edges in kept) <= 1:
        raise ValueError("its polygons are in shares of the image, or a matrix of 0 and 1; they must be in pixels")
    return kept


def _decode_rle(rle: dict[Any, Any], hw: tuple[int, int] | None) -> BoolMask:
    """Return the mask of one RLE: runs of background and object by turns, down the columns."""
    runs = _parse_runs(rle, hw)
    height, width = rle["size"]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T.copy()


def _parse_runs(rle: dict[Any, Any], hw: tuple[int, int] | None) -> list[int]:
    """Return the run lengths of one RLE, checked.

    Not by pycocotools, which does not check that the runs fill the mask and leaves stray memory in the rest.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if "counts" not in rle:
        raise ValueError(f"run lengths need 'size' and 'counts'; it has {_shorten(sorted(map(str, rle)))}")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(type(v) is int and v > 0 for v in size):
        raise ValueError(f"the size of a run-length mask must be [height, width], not {_shorten(size)}")
    height, width = size
    if hw is not None and (height, width) != hw:
        raise ValueError(f"its run lengths are of {width}×{height} pixels, the image has {hw[1]}×{hw[0]}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"its run lengths are of {width}×{height} pixels, more than {MAX_PIXELS:,}")
    if isinstance(counts, str):
        counts = counts.encode("latin-1", errors="replace")
    runs = _unpack_counts(counts) if isinstance(counts, bytes) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("run lengths must be whole numbers, none negative")
    if sum(runs) != height * width:
        raise ValueError(f"its run lengths fill {sum(runs)} of {height * width} pixels")
    return runs


def _name_dialect(counts: bytes) -> str:
    """Return which other form of run lengths than COCO's these may be: base64 has + and / and letters beyond o."""
    if re.fullmatch(rb"\d+( \d+)+", counts):
        return " (starts and lengths as Kaggle's? convert them to COCO's)"
    if re.fullmatch(rb"[A-Za-z0-9+/]+={0,2}", counts):
        return " (base64 text? convert them to COCO's)"
    return ""


def _unpack_counts(packed: bytes) -> list[int]:
    """Return the run lengths of COCO's compressed text.

    A character holds 5 bits of a number, low bits first, and a sixth that says whether more follow; the
    last one's top bit is the sign. From the fourth on a number is the difference to the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in packed:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"its compressed run lengths are broken{_name_dialect(packed)}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its compressed run lengths break off")
    return runs


def is_coordinate(value: Any) -> bool:
    """Return whether the value can be a coordinate in an image; JSON knows larger numbers, and NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_COORDINATE


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
