"""Reading of single files at the border: JSON and pictures, each fault told in one line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ris_pipeline.errors import RisError

# Far above any photograph of the known data sets, and 192 MB once it is an RGB array.
MAX_PIXELS = 64_000_000
# Several times the annotation files of the known data sets; it bounds what a hostile file can take.
MAX_BYTES = 2**28


def load_json(path: Path) -> Any:
    """What the JSON file holds. Raises RisError where it is not JSON, nested too deeply, or larger than MAX_BYTES."""
    try:
        return json.loads(read_limited(path))
    except (ValueError, RecursionError) as error:
        raise RisError(f"{path} is not valid JSON ({error}); fetch or write it again") from error
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from error


def read_limited(path: Path) -> bytes:
    """The bytes of an annotation file. Raises RisError where it is larger than MAX_BYTES, OSError as open does."""
    check_bytes(path)
    return path.read_bytes()


def check_bytes(path: Path) -> None:
    """None where the file has at most MAX_BYTES; else RisError. Raises OSError where it cannot be asked."""
    if path.stat().st_size > MAX_BYTES:
        raise RisError(f"{path} is larger than {MAX_BYTES >> 20} MiB; no known annotation file is")


def load_picture(path: Path, mode: str | None) -> NDArray[Any]:
    """The picture as an array (H, W) or (H, W, C), converted to PIL's `mode`, or as stored for None.

    EXIF orientation is not applied. Raises RisError where the file is missing, unreadable or has more
    than MAX_PIXELS pixels.
    """
    with _open_picture(path) as picture:
        return np.array(picture if mode is None else picture.convert(mode))


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture, by its header alone. Raises RisError as load_picture."""
    with _open_picture(path) as picture:
        return picture.height, picture.width


@contextmanager
def _open_picture(path: Path) -> Iterator[PIL.Image.Image]:
    """The opened picture; what goes wrong inside the block is a RisError too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            # Opening reads the header only, so a bomb is refused before any pixel is decoded.
            with PIL.Image.open(path) as picture:
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
        raise RisError(f"{path} is not a readable picture ({error}); fetch it again") from error


def resolve_inside(folder: Path, name: Any, where: str) -> Path:
    """`folder/name`, for a name from an annotation file. Raises RisError where it leads out of the folder."""
    if not isinstance(name, str) or not name or "\0" in name or any(len(part) > 255 for part in name.split("/")):
        raise RisError(f"{where}: {name!r:.200} is not a file name")
    # Read by the rules of both systems, so that "C:\\a" and "..\\a" are refused everywhere.
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.anchor or ".." in path.parts:
            raise RisError(f"{where}: the file name {name!r} leads out of {folder}; it must be relative to it")
    return folder / name
