"""Panels as small pictures: WebP in data URIs for a page, or blended over the image for a figure.

For a page, maps and masks are layers with transparency: the photograph below is stored once for all of a
sentence's tiles.
"""

from __future__ import annotations

import base64
import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris_pipeline.arrays import FOREGROUND, IGNORE, Pixels
from ris_pipeline.pictures import colour_map
from ris_pipeline.report.panels import Panel

IGNORED = (160, 160, 160)
MASK_OPACITY, MAP_OPACITY = 170, (40, 205)  # 0..255; a map's at its values 0 and 1
_LINES_IN_SIDE = 160  # a contour is this part of the longer side wide
_PHOTO_QUALITY, _MAP_QUALITY = 70, 55
_MAP_SHRINK = 2  # a map is smooth: half of the tile's resolution shows all of it


def fit_hw(hw: tuple[int, int], side: int) -> tuple[int, int]:
    """Return height and width of a tile: the longer one is `side` at most, the proportion the image's."""
    scale = min(1.0, side / max(hw))
    return max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale))


def encode_photo(image: Pixels, side: int) -> str:
    """Return the image uint8 (H, W, 3) RGB as a WebP data URI, its longer side at most `side` pixels."""
    height, width = fit_hw(image.shape[:2], side)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return _encode(Image.fromarray(small), quality=_PHOTO_QUALITY)


def encode_panel(panel: Panel, hw: tuple[int, int], side: int) -> str | None:
    """Return the panel as a WebP data URI to lay over the image of `hw`, None where it is empty.

    Maps and masks are transparent, a boundary is not.
    """
    if panel.values is None:
        return None
    height, width = fit_hw(hw, side)
    if panel.kind == "boundary":
        grey = np.rint(255 * panel.values).astype(np.uint8)
        return _encode(Image.fromarray(_resize(grey, (height // 2, width // 2))), quality=_MAP_QUALITY)
    if panel.kind == "map":
        small = _resize(panel.values.astype(np.float32), (height // _MAP_SHRINK, width // _MAP_SHRINK))
        return _encode(Image.fromarray(_paint_map(small)), quality=_MAP_QUALITY)
    return _encode(
        Image.fromarray(_paint_mask(panel.values.astype(np.uint8), panel.colour, (height, width))), quality=None
    )


def blend_panel(image: Pixels, panel: Panel) -> Pixels | None:
    """Return the panel over its image, uint8 (H, W, 3) RGB at the image's size; None where it is empty."""
    if panel.values is None:
        return None
    hw = image.shape[0], image.shape[1]
    if panel.kind == "boundary":
        grey = _resize(np.rint(255 * panel.values).astype(np.uint8), hw)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if panel.kind == "map":
        layer = _paint_map(panel.values.astype(np.float32))
    else:
        layer = _paint_mask(panel.values.astype(np.uint8), panel.colour, hw)
    alpha = layer[:, :, 3:].astype(np.float32) / 255
    blended = alpha * layer[:, :, :3] + (1 - alpha) * image
    return np.rint(blended).astype(np.uint8)


def _resize(values: NDArray[np.generic], hw: tuple[int, int]) -> NDArray[np.generic]:
    shrinks = hw[0] < values.shape[0]
    size = max(1, hw[1]), max(1, hw[0])
    resized: NDArray[np.generic] = cv2.resize(
        values, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return resized


def _paint_map(response: NDArray[np.generic]) -> Pixels:
    """Return RGBA uint8 (H, W, 4) of a map (H, W) in [0, 1]: the larger the value, the less of the image is seen."""
    values = np.clip(response.astype(np.float32), 0, 1)
    low, high = MAP_OPACITY
    alpha = np.rint(low + (high - low) * values).astype(np.uint8)
    return np.dstack([colour_map(values), alpha])


def _paint_mask(label: Pixels, colour: tuple[int, int, int], hw: tuple[int, int]) -> Pixels:
    """Return RGBA uint8 (H, W, 4) of a label (0, 1, 255) at another size: its colour, grey where it is to be ignored.

    A white line around the foreground, inside of it, is seen on an object of the mask's own colour too.
    """
    coverage = [_resize((label == value).astype(np.float32), hw) for value in (FOREGROUND, IGNORE)]
    painted = np.zeros((*hw, 4), np.uint8)
    for covered, paint in zip(coverage, (colour, IGNORED), strict=True):
        inside = covered.astype(np.float32) > 0
        painted[inside, :3] = paint
        painted[inside, 3] = np.rint(MASK_OPACITY * covered[inside].astype(np.float32)).astype(np.uint8)
    mask = (coverage[0].astype(np.float32) > 0.5).astype(np.uint8)
    width = max(1, round(max(hw) / _LINES_IN_SIDE))
    border = cv2.copyMakeBorder(mask, *4 * (width,), cv2.BORDER_CONSTANT)
    inner = cv2.erode(border, np.ones((2 * width + 1,) * 2, np.uint8))[width:-width, width:-width]
    painted[(mask > 0) & (inner == 0)] = (255, 255, 255, 230)
    return painted


def _encode(picture: Image.Image, quality: int | None) -> str:
    """Return the picture as a data URI; a quality of None is lossless."""
    file = io.BytesIO()
    if quality is None:
        picture.save(file, format="WEBP", lossless=True, quality=80, method=4, exact=False)
    else:
        picture.save(file, format="WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
