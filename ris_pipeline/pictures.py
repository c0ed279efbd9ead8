"""Masks and maps as pictures: overlays, colour maps and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ris_pipeline.arrays import BoolMask, Pixels

_CAPTION_PX = 18
_GAP_PX = 4


def overlay_mask(
    image: Pixels, mask: BoolMask, colour: tuple[int, int, int] = (255, 40, 40), opacity: float = 0.5
) -> Pixels:
    """Return the RGB image uint8 (H, W, 3) with `colour` blended over the pixels of a bool mask (H, W)."""
    painted = image.copy()
    blend = (1 - opacity) * image[mask].astype(np.float64) + opacity * np.array(colour)
    painted[mask] = np.rint(blend).astype(np.uint8)
    return painted


def colour_map(response: NDArray[np.floating]) -> Pixels:
    """Return a picture uint8 (H, W, 3) RGB of a map (H, W) in [0, 1]: blue is 0, green the middle, red 1."""
    levels = np.rint(255 * np.clip(response, 0, 1)).astype(np.uint8)
    bgr = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)
    return np.ascontiguousarray(bgr[:, :, ::-1])


def contact_sheet(
    tiles: Sequence[tuple[str, Pixels]], n_columns: int = 6, tile_hw: tuple[int, int] = (160, 200)
) -> Pixels:
    """Return one picture uint8 (H, W, 3) RGB of (caption, RGB image) tiles, row by row on white.

    An image larger than `tile_hw` is shrunk to fit, in proportion; captions stand below, cut to the width.
    """
    if not tiles:
        raise ValueError("a contact sheet needs a tile")
    height, width = tile_hw
    step_y, step_x = height + _CAPTION_PX + _GAP_PX, width + _GAP_PX
    n_columns = min(n_columns, len(tiles))
    n_rows = -(-len(tiles) // n_columns)
    sheet = Image.new("RGB", (n_columns * step_x - _GAP_PX, n_rows * step_y - _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for i, (caption, pixels) in enumerate(tiles):
        x, y = i % n_columns * step_x, i // n_columns * step_y
        picture = Image.fromarray(pixels)
        picture.thumbnail((width, height))
        sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
        draw.text((x, y + height + 1), _cut_caption(caption, width, font), fill="black", font=font)
    return np.array(sheet)


def _cut_caption(caption: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return the caption, on one line, shortened with "…" where it is wider than `width` pixels."""
    caption = " ".join(caption.split())
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(caption + "…") > width:
        caption = caption[:-1]
    return caption + "…"
