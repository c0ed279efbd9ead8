"""The images of a training, decoded and resized once: squares in one file that all its processes map into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from ris_pipeline.artifacts.files import replacing
from ris_pipeline.artifacts.identity import digest
from ris_pipeline.artifacts.locks import hold
from ris_pipeline.datasets.io.images import load_image, normalise, resize_square
from ris_pipeline.datasets.records import Dataset, Image
from ris_pipeline.errors import RisError
from ris_pipeline.training.readers import read_ahead


class ImageCache:
    """The squares uint8 (N, S, S, 3) of a file of NumPy's, by the images' ids."""

    def __init__(self, path: Path, image_ids: Sequence[int], size: int) -> None:
        """Raise RisError where the file does not hold a square of `size` pixels a side for each of the images."""
        self.path, self._rows = path, {image_id: row for row, image_id in enumerate(image_ids)}
        shape = (len(image_ids), size, size, 3)
        try:
            found = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise RisError(f"{path}: no readable cache of images ({error}); delete it") from error
        if found.shape != shape or found.dtype != np.uint8:
            raise RisError(f"{path}: holds {found.dtype} {found.shape}, not uint8 {shape}; delete it")

    @cached_property
    def _squares(self) -> NDArray[np.uint8]:
        squares: NDArray[np.uint8] = np.load(self.path, mmap_mode="r")  # in each process: a map is sent as its contents
        return squares

    def read(self, image_id: int) -> Tensor:
        """Return the image as `to_pixels` does, float32 (3, S, S)."""
        return normalise(np.array(self._squares[self._rows[image_id]]))


@dataclass(frozen=True, slots=True)
class _Squares:
    """The images in order, for the reader processes."""

    images: Sequence[Image]
    size: int
    steps_per_epoch: int = 1

    @property
    def n_steps(self) -> int:
        return len(self.images)

    def __getitem__(self, step: int) -> Tensor:
        return torch.from_numpy(resize_square(load_image(self.images[step]), self.size))

    def describe(self, step: int) -> str:
        return str(self.images[step].path)


def open_cache(
    folder: Path, images_digest: str, dataset: Dataset, size: int, workers: int, advance: Callable[[], object]
) -> ImageCache:
    """Return the cache of the images that the refs of a data set are about, made in `folder` where it is missing.

    `images_digest`: of the names and contents of the images. It is part of the file's name, so that other images have
    another file; so are the ids, the size and Pillow's version. advance() is called after each image.
    Raises BusyError while another process makes the same, RisError for an image that cannot be read.
    """
    image_ids = list(dataset.refs_of_image)
    key = digest({"images": images_digest, "ids": image_ids, "size": size, "pillow": PIL.__version__})
    path = folder / f"{dataset.split}-{size}-{key}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with hold(path.with_suffix(".lock")):
            if not path.exists():
                _write(path, _Squares([dataset.images[i] for i in image_ids], size), workers, advance)
    return ImageCache(path, image_ids, size)


def _write(path: Path, source: _Squares, workers: int, advance: Callable[[], object]) -> None:
    for left in path.parent.glob(f"{path.name}.*.new"):  # of a killed process
        left.unlink()
    header = {"descr": "|u1", "fortran_order": False, "shape": (source.n_steps, source.size, source.size, 3)}
    with replacing(path) as file, closing(read_ahead(source, range(source.n_steps), workers)) as squares:
        np.lib.format.write_array_header_1_0(file, header)
        for square in squares:
            file.write(square.numpy().tobytes())
            advance()
