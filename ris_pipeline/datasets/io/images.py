"""Images as arrays, and as the networks' input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ris_pipeline.arrays import Pixels
from ris_pipeline.datasets.io.files import load_picture, read_size
from ris_pipeline.datasets.record_checks import check_size
from ris_pipeline.datasets.records import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_image(source: Image | Path, *, upright: bool = False) -> Pixels:
    """Return an image, uint8 (H, W, 3) RGB: of a record, or of a file.

    `upright`: for a file, whether to turn it as its EXIF orientation says; a record says so itself. Raises RisError
    where the file is missing, unreadable, too large or of another size than its record.
    """
    if isinstance(source, Path):
        return load_picture(source, "RGB", upright=upright)
    image = load_picture(source.path, "RGB", upright=source.upright)
    check_size(source, (image.shape[0], image.shape[1]))
    return image


def size_of(image: Image) -> tuple[int, int]:
    """Return height and width of an image in pixels, from the file's header if its record lacks them."""
    return image.hw or read_size(image.path, upright=image.upright)


def limit_size(hw: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return height and width scaled so that no side is over `longest` pixels; hw itself if none is."""
    if max(hw) <= longest:
        return hw
    height, width = (max(round(side * longest / max(hw)), 1) for side in hw)
    return height, width


def limit_image(image: Pixels, longest: int) -> Pixels:
    """Return the image uint8 (H, W, 3) at the size that `limit_size` gives, as `resize_image`."""
    return resize_image(image, limit_size((image.shape[0], image.shape[1]), longest))


def resize_image(image: Pixels, hw: tuple[int, int]) -> Pixels:
    """Return the image uint8 (H, W, 3) at the size hw, bicubic with antialiasing; itself if it has that size."""
    if image.shape[:2] == hw:
        return image
    return np.array(PIL.Image.fromarray(image).resize(hw[::-1], PIL.Image.Resampling.BICUBIC))


def to_pixels(image: Pixels, size: int) -> Tensor:
    """Return the network input, float32 (3, size, size): (RGB in [0, 1] − ImageNet's mean) / ImageNet's deviation.

    image: uint8 (H, W, 3) RGB.
    """
    return normalise(resize_square(image, size))


def resize_square(image: Pixels, size: int) -> Pixels:
    """Return the image uint8 (H, W, 3) as a square of `size` pixels a side.

    The resize is bilinear with antialiasing and does not keep the aspect ratio (TRIS, ICCV 2023, section 4).
    """
    return np.array(PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.BILINEAR))


def normalise(image: Pixels) -> Tensor:
    """Return the image as float32 (3, H, W): (RGB in [0, 1] − ImageNet's mean) / ImageNet's deviation."""
    return _normalise(torch.from_numpy(image).permute(2, 0, 1)).contiguous()


def to_batch(squares: Sequence[Pixels], device: torch.device) -> Tensor:
    """Return squares uint8 (S, S, 3) as `normalise` does, float32 (B, 3, S, S) on `device`, channels last.

    Only bytes go to the device; a CUDA device is not waited for.
    """
    batch = torch.from_numpy(np.stack(squares))
    if device.type == "cuda":
        batch = batch.pin_memory()
    return _normalise(batch.to(device, non_blocking=True).permute(0, 3, 1, 2))


def _normalise(colours: Tensor) -> Tensor:
    pixels = colours / 255
    mean, std = _columns(IMAGENET_MEAN, IMAGENET_STD, pixels)
    return (pixels - mean) / std


def renormalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return pixels float (…, 3, H, W), normalised by ImageNet's statistics, normalised by others of RGB in [0, 1]."""
    new_mean, new_std = _columns(mean, std, pixels)
    return (to_colours(pixels) - new_mean) / new_std


def to_colours(pixels: Tensor) -> Tensor:
    """Return the RGB in [0, 1] of pixels float (…, 3, H, W), normalised by ImageNet's statistics."""
    mean, std = _columns(IMAGENET_MEAN, IMAGENET_STD, pixels)
    return pixels * std + mean


def _columns(mean: Sequence[float], std: Sequence[float], pixels: Tensor) -> tuple[Tensor, Tensor]:
    return pixels.new_tensor(mean).view(3, 1, 1), pixels.new_tensor(std).view(3, 1, 1)
