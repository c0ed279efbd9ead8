"""CaR, "CLIP as RNN" (CVPR 2024), without training: mark what a map shows, ask CLIP again, drop what does not fit.

What is left competes in a dense CRF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.arrays import Pixels
from ris_pipeline.datasets.io.images import normalise, to_colours
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import Rule
from ris_pipeline.methods.cam import compute_refined_cams
from ris_pipeline.methods.configs import CarConfig
from ris_pipeline.methods.frozen_clip import FrozenClip, find_rivals
from ris_pipeline.networks import vit
from ris_pipeline.networks.dense import OpenedImage, open_image
from ris_pipeline.refine.crf import CLIP_ES, DenseCrf, odds_of_scores

RED = (255, 0, 0)
BLUR_SIDE = 15  # pixels of the Gaussian window; CaR's code


class Picture(NamedTuple):
    """An image as CaR needs it: for the map, and as uint8 (S, S, 3) RGB to be marked and for the CRF."""

    opened: OpenedImage
    colours: Pixels


class Car(FrozenClip):
    """The responder: log-odds of the dense CRF, between a sentence's map and what is left of it or its rivals show.

    A sentence is encoded twice, as it is and in the template, float (N, 2, E): the first round asks it as it is.
    """

    def __init__(self, config: CarConfig, device: torch.device) -> None:
        super().__init__(config, device)
        if config.input_size % config.stride:
            raise RisError(
                f"input_size {config.input_size} is no multiple of stride {config.stride}: change car.stride"
            )
        if config.skip_last_block:
            vit.check_vit(self.clip.model.visual)
        self.config = config
        self.grid_hw = (config.input_size // config.stride,) * 2
        self.rule = Rule(via_input=False, activation="logit", to_image="centres", normalise="none", threshold=0.0)

    def encode_images(self, pixels: Tensor) -> list[Picture]:
        """Return each image opened, and as a picture."""
        colours = (to_colours(pixels) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        opened = [open_image(self.clip, image[None]) for image in self.clip.renormalise(pixels)]
        return list(map(Picture, opened, colours))

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return float (N, 2, E), each of length 1: of the sentences, and of them in the template."""
        return torch.stack([self.encode_phrases(sentences, "{}"), super().encode_texts(sentences)], dim=1)

    def respond(self, image: Picture, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return log-odds float32 (n, h, w)."""
        maps = self.draw_maps(image, texts[:, 1])
        rivals = find_rivals(texts[:, 1], ref_ids if self.config.with_rivals else None)
        background = 1 - maps
        if any(rivals):
            rounds = [self.judge(image, drawn) for drawn in (self.draw_maps(image, texts[:, 0]), maps)]
            for own, others in enumerate(rivals):
                kept = drop_unfit([own, *others], rounds, texts[:, 1], self.scale, self.config.confidence)
                background[own] = np.maximum(background[own], maps[kept[1:]].max(axis=0, initial=0))
        unary = odds_of_scores(maps, background)
        odds = DenseCrf(image.colours, CLIP_ES).log_odds(unary)
        # A small object can vanish in the CRF; but what is asked for is there.
        vanished = (odds <= 0).all(axis=(1, 2))
        odds[vanished] = unary[vanished]
        return F.avg_pool2d(torch.from_numpy(odds)[:, None], self.config.stride)[:, 0].to(self.device)

    def draw_maps(self, image: Picture, texts: Tensor) -> NDArray[np.float32]:
        """Return the maps float32 (n, S, S) in [0, 1) of texts float (n, E), each against the background words."""
        classes, competing = self.list_classes(texts, [[] for _ in texts])
        maps = compute_refined_cams(image.opened, classes, competing, self.scale, self.config.box_threshold)[:, None]
        hw = image.colours.shape[:2]
        found: NDArray[np.float32] = F.interpolate(maps, hw, mode="bilinear", align_corners=False)[:, 0].cpu().numpy()
        return found

    def judge(self, image: Picture, maps: NDArray[np.float32]) -> Tensor:
        """Return CLIP's features float (n, E), of length 1, of the picture marked by each map float32 (n, S, S)."""
        config = self.config
        marked = [mark(image.colours, m > config.threshold, circle=config.circle, blur=config.blur) for m in maps]
        pixels = self.clip.renormalise(torch.stack(list(map(normalise, marked))).to(self.device))
        side = (self.clip.image_size, self.clip.image_size)
        pixels = F.interpolate(pixels, side, mode="bicubic", align_corners=False, antialias=True)
        if config.skip_last_block:
            visual = self.clip.model.visual
            x, _ = vit.run_blocks(visual.transformer.resblocks[:-1], vit.embed(visual, pixels, "bicubic"))
            return F.normalize(vit.project(visual, x[:, 0]).float(), dim=-1)
        return F.normalize(self.clip.encode_image(pixels).float(), dim=-1)


def mark(picture: Pixels, mask: NDArray[np.bool_], *, circle: bool, blur: bool) -> Pixels:
    """Return a copy of the picture uint8 (H, W, 3) RGB with what is inside the mask bool (H, W) marked.

    A red ellipse of one pixel as wide and high as the mask, around the mean of its pixels; what is outside blurred. An
    empty mask marks nothing.
    """
    marked = picture.copy()
    ys, xs = mask.nonzero()
    if len(ys) <= 1:
        return marked
    if blur:
        marked = np.where(mask[..., None], picture, cv2.GaussianBlur(picture, (BLUR_SIDE, BLUR_SIDE), 0))
    if circle:
        centre = int(xs.mean()), int(ys.mean())
        half_axes = int(np.ptp(xs)) // 2, int(np.ptp(ys)) // 2
        marked = cv2.ellipse(np.ascontiguousarray(marked), centre, half_axes, 0, 0, 360, RED, 1)
    return marked


def drop_unfit(
    rows: Sequence[int], rounds: Sequence[Tensor], texts: Tensor, scale: float, confidence: float
) -> list[int]:
    """Return those of the rows whose texts fit the pictures marked by their maps, the first row always among them.

    `rounds`: features float (n, E) of the marked pictures in the first round, in the second, …; the last serve for all
    rounds after. `texts` float (n, E). A row fits where the softmax over the texts that are left gives its own picture
    more than `confidence`. From the second round on it ends where all fit.
    """
    kept = list(rows)
    for number in range(len(rows) + len(rounds)):
        features = rounds[min(number, len(rounds) - 1)]
        probs = (scale * features[kept] @ texts[kept].T).softmax(dim=1).diagonal()
        fitting = [row for row, prob in zip(kept, probs.tolist(), strict=True) if prob > confidence or row == rows[0]]
        if len(fitting) == len(kept) and number > 0:
            break
        kept = fitting
    return kept


def load(config: CarConfig, device: torch.device) -> Responder:
    """Return its responder."""
    return Car(config, device)
