"""Class-agnostic masks of an image, as SAM's automatic generator writes them, and the choice among them by maps.

Another supervision than sentences: whoever proposes the masks has learnt what an object's outline is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ris_pipeline.arrays import FOREGROUND, BoolMask, Maps
from ris_pipeline.artifacts.files import hash_file
from ris_pipeline.datasets.io.files import load_json
from ris_pipeline.datasets.io.segmentations import load_segmentation
from ris_pipeline.datasets.records import Image
from ris_pipeline.errors import RisError

LEVEL = 0.25  # of a map's maximum: what exceeds it is meant; chosen on shapes (docs/beyond.md)
N_STARTS = 5  # proposals that a union grows from: the best alone may hold two objects where the right one is in halves


def proposals_path(folder: Path, image: Image) -> Path:
    """Return where a folder keeps the proposals of an image: <name of its file>.json."""
    return folder / f"{image.path.stem}.json"


def load_proposals(folder: Path, image: Image, hw: tuple[int, int]) -> BoolMask:
    """Return the masks proposed for an image of the size hw, bool (M, H, W), without empty ones.

    Raises RisError, naming the file, where it is missing or no list of {"segmentation": RLE, …} of that size.
    """
    path = proposals_path(folder, image)
    found = load_json(path)
    if not isinstance(found, list):
        raise RisError(f"{path}: a file of proposals is a list of {{'segmentation': …}}, not {type(found).__name__}")
    masks = []
    for number, proposal in enumerate(found, start=1):
        segmentation = proposal.get("segmentation") if isinstance(proposal, dict) else None
        if not isinstance(segmentation, dict):
            raise RisError(f"{path}: proposal {number} has no run lengths; write SAM's masks by output_mode=coco_rle")
        try:
            masks.append(load_segmentation(segmentation, hw))
        except ValueError as error:
            raise RisError(f"{path}: proposal {number}: {error}") from error
    return np.array([mask for mask in masks if mask.any()], dtype=bool).reshape(-1, *hw)


def digest_proposals(folder: Path, images: Iterable[Image]) -> str:
    """Return the first 12 hex digits of a SHA-256 of the images' files of proposals; RisError where one is missing."""
    lines = []
    for path in sorted({proposals_path(folder, image) for image in images}):
        if not path.is_file():
            raise RisError(
                f"{path}: no proposals of this image; `ris make-pseudolabels --proposals` needs one JSON each"
            )
        lines.append(f"{hash_file(path)} {path.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def choose_proposals(maps: Maps, proposals: BoolMask) -> NDArray[np.uint8]:
    """Return a label for each map float32 (R, H, W): the proposal (M, H, W), or the union of some, that it covers best.

    Best is the largest IoU with the pixels in which the map exceeds LEVEL of its maximum, each pixel weighted by how
    far it is from that level. Proposals are added as long as that grows, to each of the N_STARTS best alone. Empty
    where no proposal touches them.
    """
    labels = np.zeros(maps.shape, np.uint8)
    for label, own in zip(labels, maps, strict=True):
        relative = own / max(float(own.max()), 1e-5)
        inside, outside = np.maximum(relative - LEVEL, 0), np.maximum(LEVEL - relative, 0)
        alone = _weighted_iou(proposals, inside, outside)
        starts = [k for k in np.argsort(-alone, kind="stable")[:N_STARTS] if alone[k] > 0]
        grown = [_grow(proposals[k], alone[k], proposals, inside, outside) for k in starts]
        if grown:
            label[max(grown, key=lambda found: found[1])[0]] = FOREGROUND
    return labels


def _grow(
    chosen: BoolMask, score: float, proposals: BoolMask, inside: NDArray[np.float32], outside: NDArray[np.float32]
) -> tuple[BoolMask, float]:
    while True:
        unions = proposals | chosen
        scores = _weighted_iou(unions, inside, outside)
        k = int(scores.argmax())
        if scores[k] <= score:
            return chosen, score
        chosen, score = unions[k], float(scores[k])


def _weighted_iou(masks: BoolMask, inside: NDArray[np.float32], outside: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = masks.reshape(len(masks), inside.size).astype(np.float32)
    scores: NDArray[np.float32] = (flat @ inside.ravel()) / (inside.sum() + flat @ outside.ravel() + 1e-9)
    return scores
