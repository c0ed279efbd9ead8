"""Reading of single files from outside: JSON and pictures, each fault explained by one line."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from ris_pipeline.arrays import Pixels
from ris_pipeline.errors import RisError

# Far above any photograph of the known data sets, and 192 MB once it is an RGB array.
MAX_PIXELS = 64_000_000
# Above the annotation files of the known data sets, COCO's own too; it bounds what a hostile file can take.
MAX_BYTES = 2**30
_OPENING = threading.Lock()  # the filters of warnings are the process's, and readers may be threads
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # Pillow's, of grey with more than 8 bits

# The beginnings of files that a failed download leaves in the place of another.
_OTHER_KINDS = {
    b"<": "a web page, as a dead link gives it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself (git lfs pull)",
}
# Bytes 4 to 12 of pictures that Pillow reads only by a plug-in, or where it was built for them.
_BRANDS = {b"ftypheic": "HEIC", b"ftypheix": "HEIC", b"ftypmif1": "HEIF", b"ftypavif": "AVIF"}


def load_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return what the JSON file holds. Raises RisError where it is no JSON, nested too deeply or above MAX_BYTES.

    `object_hook`: as of json.loads.
    """
    try:
        data = read_limited(path)
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from error
    check_kind(path, data)
    try:
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        del data  # of a large file it is much, and the parsed records come on top
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise RisError(f"{path} is not valid JSON ({error}); fetch or write it again") from error


def check_kind(path: Path, data: bytes) -> None:
    """Raise RisError where a file holds no annotations but nothing, a web page, an archive or a pointer."""
    if not data[:1000].strip():
        raise RisError(f"{path} is empty; fetch it again")
    if kind := find_kind(data):
        raise RisError(f"{path} is not annotations but {kind}")


def find_kind(data: bytes) -> str | None:
    """Return what a file is that begins so, if it is one of those that a failed download leaves, None if not."""
    return next((kind for start, kind in _OTHER_KINDS.items() if data[:100].lstrip().startswith(start)), None)


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(100)
    except OSError:
        return b""


def read_limited(path: Path) -> bytes:
    """Return the bytes of an annotation file. Raises RisError where it is above MAX_BYTES, OSError as open does."""
    check_bytes(path)
    return path.read_bytes()


def check_bytes(path: Path) -> None:
    """Raise RisError where the file has more than MAX_BYTES, OSError where its size cannot be read."""
    if path.stat().st_size > MAX_BYTES:
        raise RisError(f"{path} is larger than {MAX_BYTES >> 20} MiB; no known annotation file is")


def load_picture(path: Path, mode: str | None, *, upright: bool = False) -> NDArray[Any]:
    """Return the picture as an array (H, W) or (H, W, C), converted to PIL's `mode`, or as stored for None.

    `mode` "RGB" converts as `to_rgb` does. `upright`: turned as its EXIF orientation says.
    Raises RisError where the file is missing, unreadable or has more than MAX_PIXELS pixels.
    """
    with _open_picture(path) as picture:
        if mode == "RGB":
            return to_rgb(picture, upright=upright)
        return np.array(picture if mode is None else picture.convert(mode))


def to_rgb(picture: PIL.Image.Image, *, upright: bool) -> Pixels:
    """Return an opened picture of any mode as uint8 (H, W, 3) RGB.

    16-bit grey is scaled by the range of its type, float grey in [0, 1] by that range, and other 32-bit and float grey
    by its own smallest and largest value; Pillow would cut all of them at 255. `upright`: turned as EXIF says.
    """
    if upright:
        picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode not in _DEEP_MODES:
        picture.load()
        # It changes no colour, and of a palette's Pillow would warn that RGB has no place for it.
        picture.info.pop("transparency", None)
        return np.array(picture.convert("RGB"))
    values = np.array(picture).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if picture.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif picture.mode != "F" and low >= 0 and high < 2**16:  # Pillow opens some 16-bit files as 32-bit ones
        low, high = 0.0, 2.0**16 - 1
    share = np.nan_to_num((values - low) / max(high - low, 1e-30), nan=0.0, posinf=1.0, neginf=0.0)
    grey = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def read_remark(path: Path) -> str | None:
    """Return a remark on how the picture is read, None for an ordinary one. Raises RisError as load_picture."""
    with _open_picture(path) as picture:
        if picture.mode in _DEEP_MODES:
            return f"{path}: grey values of more than 8 bits ({picture.mode}), scaled to 0 to 255"
        return None


def is_turned(path: Path) -> bool:
    """Return whether EXIF turns or mirrors the picture for display. Raises RisError as load_picture."""
    with _open_picture(path) as picture:
        return bool(picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1)


def read_size(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """Return height and width of the picture from its header; `upright`: turned as its EXIF orientation says.

    Raises RisError as load_picture.
    """
    with _open_picture(path) as picture:
        is_turned = upright and picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (picture.width, picture.height) if is_turned else (picture.height, picture.width)


@contextmanager
def _open_picture(path: Path) -> Iterator[PIL.Image.Image]:
    """Open the picture for the block; turn errors of reading it, also in the block, into a RisError."""
    try:
        # Opening reads the header only, so a bomb is refused before any pixel is decoded.
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(path)
        with picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise RisError(
                    f"{path} is too large ({picture.width}×{picture.height} pixels, "
                    f"at most {MAX_PIXELS:,}); scale it down"
                )
            yield picture
    except FileNotFoundError as error:
        raise RisError(f"{path} is missing; data/README.md says where it comes from") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise RisError(f"{path} is too large (at most {MAX_PIXELS:,} pixels); scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # PIL's codecs raise any of these
        start = _read_start(path)
        if kind := find_kind(start):
            raise RisError(f"{path} is not a picture but {kind}") from error
        if isinstance(error, PIL.UnidentifiedImageError) and (brand := _BRANDS.get(start[4:12])):
            raise RisError(f"{path} is {brand}, which this Pillow does not read; save it as JPEG or PNG") from error
        raise RisError(f"{path} is not a readable picture ({error}); fetch it again") from error


def resolve_inside(folder: Path, name: Any, where: str) -> Path:
    """Return `folder/name`, for a name from an annotation file. Raises RisError where it leads out of the folder."""
    if not isinstance(name, str) or not name or "\0" in name or any(len(part) > 255 for part in name.split("/")):
        raise RisError(f"{where}: {name!r:.200} is not a file name")
    if "://" in name:
        raise RisError(f"{where}: {name!r:.200} is an address; give the name of a file in {folder}")
    # Read by the rules of both systems, so that "C:\\a" and "..\\a" are refused everywhere.
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.anchor or ".." in path.parts:
            raise RisError(f"{where}: the file name {name!r} leads out of {folder}; it must be relative to it")
    return folder / name
