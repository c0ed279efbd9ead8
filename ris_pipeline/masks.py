"""Masks as files and pictures: pseudo-label PNGs, COCO run lengths, overlays and contact sheets."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from ris_pipeline.artifacts.files import replacing
from ris_pipeline.datasets.io.files import load_picture
from ris_pipeline.errors import RisError

BACKGROUND, FOREGROUND, IGNORE = 0, 1, 255

BoolMask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"  # a PNG begins so; parts follow: length, kind, contents, checksum
_CAPTION_PX = 18
_GAP_PX = 4


class Rle(TypedDict):
    """A mask in COCO's compressed run lengths, column by column; `size` is [H, W], `counts` ASCII."""

    size: list[int]
    counts: str


def save_label(path: Path, label: Pixels) -> None:
    """Write a label uint8 (H, W), 0 background, 1 foreground, 255 ignore, as an 8-bit PNG, atomically.

    Raises ValueError for other values, types or shapes.
    """
    _check_label(label)
    with replacing(path, fsync=False) as file:  # thousands of them: publishing brings them to the disk
        Image.fromarray(label).save(file, format="PNG")


def load_label(path: Path) -> Pixels:
    """Return the label uint8 (H, W) of 0, 1 and 255 in a PNG; RisError where it is missing or no label."""
    try:
        label: Pixels = load_picture(path, mode=None)
        _check_label(label)
    except (RisError, ValueError) as error:
        raise RisError(f"{path}: not a pseudo-label ({error}); run `ris make-pseudolabels` again") from error
    return label


def resize_labels(labels: Pixels, hw: tuple[int, int]) -> Pixels:
    """Return labels uint8 (R, h, w) at the size hw, each pixel that of the nearest centre."""
    h, w = labels.shape[1:]
    y = ((np.arange(hw[0]) + 0.5) * h / hw[0]).astype(int)
    x = ((np.arange(hw[1]) + 0.5) * w / hw[1]).astype(int)
    return labels[:, y[:, None], x[None, :]]


def has_right_checksums(path: Path) -> bool:
    """Whether the file is a PNG whose every part has its checksum: decoders pass over that of the pixels."""
    data = path.read_bytes()
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        size = int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        end = at + 8 + size
        if data[end : end + 4] != zlib.crc32(data[at + 4 : end]).to_bytes(4):
            return False
        at = end + 4
    return data.startswith(_PNG) and at == len(data)


def _check_label(label: npt.NDArray[np.generic]) -> None:
    if label.dtype != np.uint8 or label.ndim != 2:
        raise ValueError(f"a label is uint8 (H, W), not {label.dtype} {label.shape}")
    others = np.setdiff1d(label, (BACKGROUND, FOREGROUND, IGNORE))
    if len(others):
        raise ValueError(f"a label holds 0, 1 and 255 only, not {others[0]}")


def encode_rle(mask: BoolMask) -> Rle:
    """Return the COCO run lengths of a bool mask (H, W), ready for JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> BoolMask:
    """Return the bool mask (H, W) of COCO run lengths."""
    encoded = {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
    mask: BoolMask = coco_mask.decode(encoded).astype(bool)
    return mask


def overlay_mask(
    image: Pixels, mask: BoolMask, colour: tuple[int, int, int] = (255, 40, 40), opacity: float = 0.5
) -> Pixels:
    """Return the RGB image uint8 (H, W, 3) with `colour` blended over the pixels of a bool mask (H, W)."""
    painted = image.copy()
    blend = (1 - opacity) * image[mask].astype(np.float64) + opacity * np.array(colour)
    painted[mask] = np.rint(blend).astype(np.uint8)
    return painted


def colour_map(response: npt.NDArray[np.floating]) -> Pixels:
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
