"""Labels as files: pseudo-labels are PNGs of 0 background, 1 foreground and 255 ignore."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris_pipeline.arrays import BACKGROUND, FOREGROUND, IGNORE, Pixels
from ris_pipeline.artifacts.files import replacing
from ris_pipeline.datasets.io.files import load_picture
from ris_pipeline.errors import RisError

_PNG = b"\x89PNG\r\n\x1a\n"  # a PNG begins so; chunks follow: length, kind, contents, checksum


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
    """Return labels uint8 (R, h, w) at the size hw, by nearest neighbour."""
    h, w = labels.shape[1:]
    y = ((np.arange(hw[0]) + 0.5) * h / hw[0]).astype(int)
    x = ((np.arange(hw[1]) + 0.5) * w / hw[1]).astype(int)
    return labels[:, y[:, None], x[None, :]]


def has_right_checksums(path: Path) -> bool:
    """Return whether the file is a PNG whose chunks all have their checksums; decoders skip that of the pixels."""
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


def _check_label(label: NDArray[np.generic]) -> None:
    if label.dtype != np.uint8 or label.ndim != 2:
        raise ValueError(f"a label is uint8 (H, W), not {label.dtype} {label.shape}")
    others = np.setdiff1d(label, (BACKGROUND, FOREGROUND, IGNORE))
    if len(others):
        raise ValueError(f"a label holds 0, 1 and 255 only, not {others[0]}")
