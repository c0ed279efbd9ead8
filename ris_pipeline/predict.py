"""Masks for one's own images and sentences, by a trained Step-1 or Step-2: ours, or one that TRIS released."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self, overload

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.artifacts.identity import MANIFEST
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.datasets.io.files import load_json
from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.errors import RisError
from ris_pipeline.maps.store import compute_map
from ris_pipeline.networks.load import build_released, build_step1, build_step2, config_from_manifest
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.networks.weights.released import read_released
from ris_pipeline.training.loop import WEIGHTS

MAP_FOREGROUND = 1e-9  # a response map's mask is where it exceeds this; TRIS, released evaluation

Pixels = NDArray[np.uint8]
ImageLike = Pixels | PIL.Image.Image | Path | str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one sentence refers to in an image of H×W pixels.

    `map` float32 (H, W) in [0, 1]: Step-1's response map, or the sigmoid of Step-2's logits.
    `mask` bool (H, W): the map exceeds 1e-9, or the logit 0; nowhere, where the network finds nothing.
    """

    map: NDArray[np.float32]
    mask: NDArray[np.bool_]

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

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str | None = None) -> Self:
        """Return the Segmenter of a Step-1 or Step-2, on `device` (the CPU where it is None).

        `path` is the folder of an artifact, or a checkpoint that TRIS released (.pth).
        Raises RisError where it is neither, or its weights cannot be read.
        """
        path = Path(path)
        if path.is_file():
            released = read_released(path)
            size = released.config.input_size if isinstance(released.config, Step1Config | Step2Config) else 0
            return cls(build_released(released, path).to(device), size)
        manifest = load_json(path / MANIFEST)
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
    def untrained(cls, config: Step1Config, device: torch.device | str | None = None) -> Self:
        """Return the Segmenter of a Step-1 before any training: its maps are those of its CLIP (MaskCLIP).

        A cosine of CLIP's features is positive nearly everywhere; training is what gives the 0 its meaning. So the
        map is what exceeds the mean over the image.
        Raises RisError where the configuration starts the projections at random values instead of CLIP's.
        """
        if not config.project_from_clip:
            raise RisError("an untrained Step-1 gives maps of CLIP only with project_from_clip; train it first")
        network = build_step1(config).requires_grad_(False).eval()
        return cls(network.to(device), config.input_size, centred=True)

    @overload
    def __call__(self, image: ImageLike, sentences: str) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, image: ImageLike, sentences: Sequence[str]) -> list[Prediction]: ...

    def __call__(self, image: ImageLike, sentences: str | Sequence[str]) -> Prediction | list[Prediction]:
        """Return the prediction for a sentence, or a list of them for several, about one image.

        `image` is a path, a PIL image of any mode, or an array uint8 (H, W, 3) RGB or (H, W) grey. It is not turned
        by its EXIF orientation. Raises RisError where it cannot be read.
        """
        if isinstance(sentences, str):
            return self(image, [sentences])[0]
        (predictions,) = self.segment_images([image], sentences)
        return predictions

    def segment_images(
        self, images: Iterable[ImageLike], sentences: Sequence[str], batch_size: int = 8
    ) -> Iterator[list[Prediction]]:
        """Yield, image by image, the predictions for all sentences, which are encoded once.

        Up to `batch_size` images are encoded together and held in memory, however many there are. Images and errors
        are as in a call.
        """
        if not sentences:
            raise RisError("no sentence to segment by; give one or more")
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            texts = self.network.encode_text(self.network.clip.tokenize(sentences).to(device))
        remaining = iter(images)
        while arrays := [to_array(image) for image in islice(remaining, batch_size)]:
            with torch.inference_mode():
                pixels = torch.stack([to_pixels(array, self.input_size) for array in arrays]).to(device)
                grids = self._respond(pixels, texts)
            for grid, array in zip(grids, arrays, strict=True):
                yield self._predict(grid, (array.shape[0], array.shape[1]))

    def _respond(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Return Step-1's score grids float (B, N, h, w), or Step-2's logits (B, N, S, S), of B images and N texts."""
        n_images, n_texts = len(pixels), len(texts)
        network = self.network
        if isinstance(network, Step1):
            # Each text alone with the image, as the official evaluation has it.
            V = network.encode_image(pixels)
            S = network.respond_each(V, texts.repeat(n_images, 1))
            if self.centred:
                S = S - S.mean(dim=(1, 2), keepdim=True)
            return S.view(n_images, n_texts, *S.shape[1:])
        c1, c2, c3, c4 = network.encode_image(pixels)
        logits = []
        for i in range(n_images):  # one image at a time: the decoder's maps of all pairs would fill the memory
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


def to_array(image: ImageLike) -> Pixels:
    """Return an image as uint8 (H, W, 3) RGB; forms and errors as in a call of Segmenter."""
    if isinstance(image, str | Path):
        return load_image(Path(image))
    if isinstance(image, PIL.Image.Image):
        try:
            return np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:  # PIL decodes only now
            raise RisError(f"the image cannot be decoded ({error})") from error
    if image.dtype == np.uint8 and image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise RisError(f"an image is uint8 (H, W, 3) RGB or (H, W) grey, not {image.dtype} {image.shape}")
    return image


def resize_logits(logits: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Return Step-2's logits float32 (n, H, W) at image size, of those at input size, float (n, S, S).

    Bilinear with align_corners=True, as the released evaluation resizes.
    """
    # Differs from TRIS: no division by the maximum, which is negative where nothing is found and flips the mask.
    return F.interpolate(logits.float()[:, None], size=image_hw, mode="bilinear", align_corners=True).squeeze(1)
