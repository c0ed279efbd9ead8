"""Masks for your own images and sentences: by Step-1 or Step-2, ours or released by TRIS, or by a compared method."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, overload

import cv2
import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from ris_pipeline.arrays import Pixels
from ris_pipeline.artifacts.find import load_artifact
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import MANIFEST
from ris_pipeline.config import Step1Config
from ris_pipeline.datasets.check import has_other_script
from ris_pipeline.datasets.io.files import to_rgb
from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.datasets.io.segmentations import Rle, encode_rle, extent_of
from ris_pipeline.errors import RisError, suggest_path
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import compute_map, compute_mask, show_map
from ris_pipeline.methods.load import load_network
from ris_pipeline.methods.tris import load_released, load_untrained
from ris_pipeline.pictures import overlay_mask
from ris_pipeline.process.device import find_device

ImageLike = Pixels | PIL.Image.Image | Path | str


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """What one sentence refers to in an image of H×W pixels.

    `map` float32 (H, W) in [0, 1]: the response map, or the sigmoid of Step-2's logits. `mask` bool (H, W): where the
    map exceeds the threshold of its rule; empty where nothing is found.

    >>> import numpy as np
    >>> from ris_pipeline import Prediction
    >>> response = np.array([[0.0, 0.9], [0.0, 0.8]], np.float32)
    >>> found = Prediction(response, response > 0.5)
    >>> found
    Prediction(2×2 pixels, mask 50.0%, score 0.85)
    >>> found.box
    (1, 0, 2, 2)
    """

    map: NDArray[np.float32]
    mask: NDArray[np.bool_]

    def __repr__(self) -> str:
        """Return size, share of the mask and score in one line."""
        height, width = self.mask.shape
        return f"Prediction({height}×{width} pixels, mask {self.mask.mean():.1%}, score {self.score:.2f})"

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The tight box of the mask in pixels: left, top, right, bottom, the last two outside; None if it is empty."""
        extent = extent_of(self.mask)
        if extent is None:
            return None
        left, top, right, bottom = map(int, extent)
        return left, top, right, bottom

    @property
    def polygons(self) -> list[list[float]]:
        """The outer contours of the mask as COCO polygons [x1, y1, x2, y2, …], pixel centres; holes are filled."""
        contours, _ = cv2.findContours(self.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        return [contour.reshape(-1).astype(float).tolist() for contour in contours if len(contour) >= 3]

    @property
    def rle(self) -> Rle:
        """The mask in COCO's compressed run lengths, {"size": [H, W], "counts": text}, ready for JSON."""
        return encode_rle(self.mask)

    def plot(self, image: ImageLike) -> PIL.Image.Image:
        """Return the image with the mask painted over it in red. Raises RisError where the image has another size."""
        pixels = to_array(image)
        if pixels.shape[:2] != self.mask.shape:
            raise RisError(
                f"the image has {pixels.shape[:2]} pixels, the mask {self.mask.shape}; give the segmented image"
            )
        return PIL.Image.fromarray(overlay_mask(pixels, self.mask))

    def save(self, path: Path | str) -> None:
        """Write the mask as an 8-bit PNG, 255 on the object and 0 elsewhere."""
        PIL.Image.fromarray(self.mask.astype(np.uint8) * 255).save(path, format="PNG")

    @property
    def score(self) -> float:
        """The mean of the map over the mask, in [0, 1]; 0 where the mask is empty.

        Of Step-2 it is the mean probability that a pixel of the mask belongs to the object. Step-1's map is divided
        by its own maximum: there it says how even the response is, and does not compare sentences.
        """
        return float(self.map[self.mask].mean()) if self.mask.any() else 0.0


class Segmenter:
    """A trained network, in evaluation mode, to be called with an image and sentences.

    >>> import numpy as np
    >>> from ris_pipeline import Segmenter
    >>> segmenter = Segmenter.load("runs/shapes/step2/latest-pseudo")  # doctest: +SKIP
    >>> segmenter("photo.jpg", "the man in grey").save("mask.png")  # doctest: +SKIP

    Before any training, of the small CLIP that is shipped:

    >>> from ris_pipeline.config import Step1Config
    >>> segmenter = Segmenter.untrained(Step1Config(clip="shapes", hidden=256, project_from_clip=True), device="cpu")
    >>> segmenter.set_image(np.full((120, 160, 3), 255, np.uint8))
    >>> [found.mask.shape for found in segmenter.segment(["the red circle", "the star on the left"])]
    [(120, 160), (120, 160)]
    """

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self._image: Any = None  # encoding of the last set_image
        self._image_hw = (0, 0)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "auto") -> Self:
        """Return the Segmenter of a Step-1 or Step-2.

        `path` is the folder of an artifact, whatever it is called, or a checkpoint that TRIS released (.pth). `device`:
        "auto" takes CUDA where there is any.
        Raises RisError where `path` is neither, or its weights cannot be read.
        """
        path, device = Path(path), find_device(str(device))
        if path.is_file():
            return cls(load_released(path, device))
        return cls(load_network(_load_artifact(path), device))

    @classmethod
    def untrained(cls, config: Step1Config, device: torch.device | str = "auto") -> Self:
        """Return the Segmenter of a Step-1 before any training, whose maps are those of its CLIP (MaskCLIP).

        Raises RisError where the configuration starts the projections at random values instead of CLIP's.
        """
        return cls(load_untrained(config, find_device(str(device))))

    @overload
    def __call__(self, image: ImageLike, sentences: str) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, image: ImageLike, sentences: Sequence[str]) -> list[Prediction]: ...

    def __call__(self, image: ImageLike, sentences: str | Sequence[str]) -> Prediction | list[Prediction]:
        """Return the prediction for a sentence, or a list of them for several, about one image.

        `image` is a path, a PIL image of any mode, or an array uint8 (H, W, 3) RGB or (H, W) grey. A file or PIL image
        is turned as its EXIF orientation says, as viewers do.
        Raises RisError where it cannot be read, and for a sentence that is empty.
        """
        self.set_image(image)
        return self.segment(sentences)

    def set_image(self, image: ImageLike) -> None:
        """Encode an image once, for any number of calls of `segment`; forms and errors as in a call."""
        array = to_array(image)
        self._image_hw = array.shape[0], array.shape[1]
        (self._image,) = self._encode([array])

    @overload
    def segment(self, sentences: str) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def segment(self, sentences: Sequence[str]) -> list[Prediction]: ...

    def segment(self, sentences: str | Sequence[str]) -> Prediction | list[Prediction]:
        """Return the predictions for the image of the last `set_image` (or call). Raises RisError before the first."""
        if self._image is None:
            raise RisError("no image to segment; call set_image first")
        texts = self._encode_texts([sentences] if isinstance(sentences, str) else sentences)
        predictions = self._predict(self._image, self._image_hw, texts)
        return predictions[0] if isinstance(sentences, str) else predictions

    def describe_unread(self, sentences: Sequence[str]) -> list[str]:
        """Return a line on sentences that are too long for the network, and one on those in a foreign script."""
        return describe_unread(self.responder, sentences)

    def segment_images(
        self, images: Iterable[ImageLike], sentences: Sequence[str], batch_size: int = 8
    ) -> Iterator[list[Prediction]]:
        """Yield, image by image, the predictions for all sentences, which are encoded once.

        Up to `batch_size` images are encoded together and held in memory, however many there are. Images and errors
        are as in a call.
        """
        remaining = iter(images)
        return self.segment_batches(iter(lambda: list(islice(remaining, batch_size)), []), sentences)

    def segment_batches(
        self, batches: Iterable[Sequence[ImageLike]], sentences: Sequence[str]
    ) -> Iterator[list[Prediction]]:
        """Yield as `segment_images`, of images in batches that are encoded together; one may be empty."""
        texts = self._encode_texts(sentences)
        for batch in batches:
            arrays = [to_array(image) for image in batch]
            for encoded, array in zip(self._encode(arrays) if arrays else (), arrays, strict=True):
                yield self._predict(encoded, (array.shape[0], array.shape[1]), texts)

    @torch.no_grad()
    def _encode(self, arrays: Sequence[Pixels]) -> list[Any]:
        pixels = torch.stack([to_pixels(array, self.responder.input_size) for array in arrays])
        return self.responder.encode_images(pixels.to(self.responder.device, memory_format=torch.channels_last))

    @torch.no_grad()
    def _encode_texts(self, sentences: Sequence[str]) -> Tensor:
        check_sentences(sentences)
        for line in self.describe_unread(sentences):
            warnings.warn(line, stacklevel=3)
        return self.responder.encode_texts(list(sentences))

    @torch.no_grad()
    def _predict(self, image: Any, image_hw: tuple[int, int], texts: Tensor) -> list[Prediction]:
        rule = self.responder.rule
        maps = compute_map(self.responder.respond(image, texts), rule, self.responder.input_size, image_hw)
        shown, masks = show_map(maps, rule).cpu().numpy(), compute_mask(maps, rule).cpu().numpy()
        return [Prediction(*pair) for pair in zip(shown, masks, strict=True)]


def check_sentences(sentences: Sequence[str]) -> None:
    """Raise RisError where there is no sentence, or one is empty or no text."""
    if not isinstance(sentences, list | tuple) or not sentences:
        raise RisError("no sentence to segment by; give one, or a list of them")
    for number, sentence in enumerate(sentences, start=1):
        if not isinstance(sentence, str):
            raise RisError(f"sentence {number} is {type(sentence).__name__}, not text")
        if not sentence.strip():
            raise RisError(f"sentence {number} is empty; write what to segment")


def describe_unread(responder: Responder, sentences: Sequence[str]) -> list[str]:
    """Return a line on sentences that are too long for the responder, and one on those in a foreign script."""
    n_tokens = responder.n_tokens
    foreign = list(filter(has_other_script, sentences)) if responder.latin_only else []
    remarks = {
        f"longer than the {n_tokens} tokens that are read (some {n_tokens - 4} words), the end is cut": (
            responder.find_cut(sentences)
        ),
        "in a script that this CLIP has hardly seen, translate it": foreign,
    }
    return [f"{remark}: {_quote(found)}" for remark, found in remarks.items() if found]


def _quote(sentences: Sequence[str]) -> str:
    shown = ", ".join(f'"{sentence[:60]}{"…" if len(sentence) > 60 else ""}"' for sentence in sentences[:3])
    return shown + (f" and {len(sentences) - 3} more" if len(sentences) > 3 else "")


def to_array(image: ImageLike, *, upright: bool = True) -> Pixels:
    """Return an image as uint8 (H, W, 3) RGB; forms and errors as in a call of Segmenter.

    `upright`: a file or PIL image is turned as its EXIF orientation says.
    """
    if isinstance(image, str | Path):
        return load_image(Path(image), upright=upright)
    if isinstance(image, PIL.Image.Image):
        try:
            return to_rgb(image, upright=upright)
        except (OSError, ValueError, SyntaxError) as error:  # PIL decodes only now
            raise RisError(f"the image cannot be decoded ({error})") from error
    if not isinstance(image, np.ndarray):
        raise RisError(f"an image is a path, a PIL image or an array uint8 (H, W, 3), not {type(image).__name__}")
    if image.dtype == np.uint8 and image.ndim == 2 and image.size:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise RisError(f"an image is uint8 (H, W, 3) RGB or (H, W) grey, not {image.dtype} {image.shape}")
    return image


def _load_artifact(folder: Path) -> Artifact:
    """Return the artifact in `folder`; RisError, naming artifacts further inside, where it holds none."""
    artifact = load_artifact(folder)
    if artifact is not None:
        return artifact
    inside = sorted({path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{MANIFEST}")})
    if inside:
        hint = f"; it holds {', '.join(map(str, inside[:3]))}"
    else:
        hint = "" if folder.exists() else f"{suggest_path(folder)}"
    what = "holds no artifact itself" if folder.exists() else "no such checkpoint"
    raise RisError(f"{folder}: {what}; give the folder with a {MANIFEST}, or a released .pth file{hint}")
