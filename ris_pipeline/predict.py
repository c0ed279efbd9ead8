"""Masks for one's own images and sentences, by a trained Step-1 or Step-2: ours, or one that TRIS released."""

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
from torch.nn import functional as F

from ris_pipeline.artifacts.layout import MANIFEST, WEIGHTS
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.datasets.io.files import load_json, to_rgb
from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.errors import RisError, suggest_path
from ris_pipeline.maps.store import compute_map
from ris_pipeline.masks import Rle, encode_rle, overlay_mask
from ris_pipeline.networks.load import build_released, build_step1, build_step2, config_from_manifest
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.networks.weights.released import read_released
from ris_pipeline.process.device import find_device

MAP_FOREGROUND = 1e-9  # a response map's mask is where it exceeds this; TRIS, released evaluation

Pixels = NDArray[np.uint8]
ImageLike = Pixels | PIL.Image.Image | Path | str


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """What one sentence refers to in an image of H×W pixels.

    `map` float32 (H, W) in [0, 1]: Step-1's response map, or the sigmoid of Step-2's logits.
    `mask` bool (H, W): the map exceeds 1e-9, or the logit 0; nowhere, where the network finds nothing.
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
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

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
            raise RisError(f"the image has {pixels.shape[:2]} pixels, the mask {self.mask.shape}")
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
    """A trained network, in evaluation mode, to be called with an image and sentences."""

    def __init__(self, network: Step1 | Step2, input_size: int, *, centred: bool = False) -> None:
        """`centred`: of Step-1's scores, only what exceeds their mean over the image counts."""
        self.network = network
        self.input_size = input_size
        self.centred = centred
        self._encoded: Any = None  # of the last set_image
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
            released = read_released(path)
            size = released.config.input_size if isinstance(released.config, Step1Config | Step2Config) else 0
            return cls(build_released(released, path).to(device), size)
        manifest = load_json(_find_manifest(path))
        stage = manifest.get("stage")
        network: Step1 | Step2
        if stage == "step1":
            config = config_from_manifest(Step1Config, manifest)
            network = build_step1(config, path / WEIGHTS)
        elif stage == "step2":
            config = config_from_manifest(Step2Config, manifest)
            network = build_step2(config, path / WEIGHTS)
        else:
            raise RisError(f"{path}: an artifact of {stage}, which does not segment; give one of step1 or step2")
        return cls(network.to(device), config.input_size)

    @classmethod
    def untrained(cls, config: Step1Config, device: torch.device | str = "auto") -> Self:
        """Return the Segmenter of a Step-1 before any training: its maps are those of its CLIP (MaskCLIP).

        A cosine of CLIP's features is positive nearly everywhere; training is what gives the 0 its meaning. So the
        map is what exceeds the mean over the image.
        Raises RisError where the configuration starts the projections at random values instead of CLIP's.
        """
        if not config.project_from_clip:
            raise RisError("an untrained Step-1 gives maps of CLIP only with project_from_clip; train it first")
        network = build_step1(config).requires_grad_(False).eval()
        return cls(network.to(find_device(str(device))), config.input_size, centred=True)

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
        self._encoded = self._encode(to_pixels(array, self.input_size)[None])

    @overload
    def segment(self, sentences: str) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def segment(self, sentences: Sequence[str]) -> list[Prediction]: ...

    def segment(self, sentences: str | Sequence[str]) -> Prediction | list[Prediction]:
        """Return the predictions for the image of the last `set_image` (or call). Raises RisError before the first."""
        if self._encoded is None:
            raise RisError("no image to segment; call set_image first")
        texts = self._encode_texts([sentences] if isinstance(sentences, str) else sentences)
        predictions = self._predict(self._respond(self._encoded, texts)[0], self._image_hw)
        return predictions[0] if isinstance(sentences, str) else predictions

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that are too long for the network: what exceeds its tokens is not read."""
        return self.network.clip.find_cut(sentences)

    def segment_images(
        self, images: Iterable[ImageLike], sentences: Sequence[str], batch_size: int = 8
    ) -> Iterator[list[Prediction]]:
        """Yield, image by image, the predictions for all sentences, which are encoded once.

        Up to `batch_size` images are encoded together and held in memory, however many there are. Images and errors
        are as in a call.
        """
        texts = self._encode_texts(sentences)
        remaining = iter(images)
        while arrays := [to_array(image) for image in islice(remaining, batch_size)]:
            encoded = self._encode(torch.stack([to_pixels(array, self.input_size) for array in arrays]))
            for grid, array in zip(self._respond(encoded, texts), arrays, strict=True):
                yield self._predict(grid, (array.shape[0], array.shape[1]))

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def _encode_texts(self, sentences: Sequence[str]) -> Any:
        check_sentences(sentences)
        if cut := self.find_cut(sentences):
            warnings.warn(describe_cut(cut, self.network.clip.n_tokens), stacklevel=3)
        return self.network.encode_text(self.network.clip.tokenize(sentences).to(self._device))

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Any:
        return self.network.encode_image(pixels.to(self._device))

    @torch.inference_mode()
    def _respond(self, encoded: Any, texts: Any) -> Tensor:
        """Return Step-1's score grids float (B, N, h, w), or Step-2's logits (B, N, S, S), of B images and N texts."""
        network = self.network
        if isinstance(network, Step1):
            n_images, n_texts = len(encoded), len(texts)
            # Each text alone with the image, as the official evaluation has it.
            S = network.respond_each(encoded, texts.repeat(n_images, 1))
            if self.centred:
                S = S - S.mean(dim=(1, 2), keepdim=True)
            return S.view(n_images, n_texts, *S.shape[1:])
        c1, c2, c3, c4 = encoded
        logits = []
        for i in range(len(c1)):  # one image at a time: the decoder's maps of all pairs would fill the memory
            found = network.segment((c1[i : i + 1], c2[i : i + 1], c3[i : i + 1], c4[i : i + 1]), texts)
            assert isinstance(found, Tensor)  # evaluation mode: one head
            logits.append(found)
        return torch.stack(logits)

    @torch.inference_mode()
    def _predict(self, grid: Tensor, image_hw: tuple[int, int]) -> list[Prediction]:
        """Return the predictions of one image from its rows (N, h, w) of `_respond`."""
        if isinstance(self.network, Step1):
            maps = compute_map(grid, self.input_size, image_hw)
            masks = maps > MAP_FOREGROUND
        else:
            logits = resize_logits(grid, image_hw)
            maps, masks = logits.sigmoid(), logits > 0
        return [Prediction(*one) for one in zip(maps.cpu().numpy(), masks.cpu().numpy(), strict=True)]


def check_sentences(sentences: Sequence[str]) -> None:
    """Raise RisError where there is no sentence, or one is empty or no text."""
    if not isinstance(sentences, list | tuple) or not sentences:
        raise RisError("no sentence to segment by; give one, or a list of them")
    for number, sentence in enumerate(sentences, start=1):
        if not isinstance(sentence, str):
            raise RisError(f"sentence {number} is {type(sentence).__name__}, not text")
        if not sentence.strip():
            raise RisError(f"sentence {number} is empty; write what to segment")


def describe_cut(cut: Sequence[str], n_tokens: int) -> str:
    """Return one line on sentences that are longer than the network reads."""
    shown = ", ".join(f'"{sentence[:60]}{"…" if len(sentence) > 60 else ""}"' for sentence in cut[:3])
    more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
    return f"longer than the {n_tokens} tokens that are read (some {n_tokens - 4} words), the end is cut: {shown}{more}"


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


def _find_manifest(folder: Path) -> Path:
    """The manifest of the artifact in `folder`; RisError, naming artifacts further inside, where it holds none."""
    if (folder / MANIFEST).is_file():
        return folder / MANIFEST
    inside = sorted({path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{MANIFEST}")})
    if inside:
        hint = f"; it holds {', '.join(map(str, inside[:3]))}"
    else:
        hint = "" if folder.exists() else f"{suggest_path(folder)}"
    what = "holds no artifact itself" if folder.exists() else "no such checkpoint"
    raise RisError(f"{folder}: {what}; give the folder with a {MANIFEST}, or a released .pth file{hint}")


def resize_logits(logits: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Return Step-2's logits float32 (n, H, W) at image size, of those at input size, float (n, S, S).

    Bilinear with align_corners=True, as the released evaluation resizes.
    """
    # Differs from TRIS: no division by the maximum, which is negative where nothing is found and flips the mask.
    return F.interpolate(logits.float()[:, None], size=image_hw, mode="bilinear", align_corners=True).squeeze(1)
