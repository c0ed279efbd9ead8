"""Images as arrays, and as the networks' input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from ris_pipeline.datasets.io.files import load_picture
from ris_pipeline.datasets.records import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_image(path: Path) -> NDArray[np.uint8]:
    """The image, uint8 (H, W, 3) RGB, not turned by its EXIF orientation (the annotations are not either).

    Raises RisError where the file is missing, unreadable or too large.
    """
    return load_picture(path, mode="RGB")


def size_of(image: Image) -> tuple[int, int]:
    """Height and width of an image in pixels; the file is opened only where its record does not tell."""
    if image.hw is not None:
        return image.hw
    height, width = load_image(image.path).shape[:2]
    return height, width


def to_pixels(image: NDArray[np.uint8], size: int) -> Tensor:
    """The network input, float32 (3, size, size): (RGB in [0, 1] − ImageNet's mean) / ImageNet's deviation.

    image: uint8 (H, W, 3) RGB. The resize is bilinear with antialiasing and does not keep the aspect ratio
    (TRIS, ICCV 2023, section 4).
    """
    picture = PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.BILINEAR)
    return normalise(np.array(picture))


def normalise(image: NDArray[np.uint8]) -> Tensor:
    """The image at its own size, float32 (3, H, W): (RGB in [0, 1] − ImageNet's mean) / ImageNet's deviation."""
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous()
