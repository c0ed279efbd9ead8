"""Proposals as a generator of class-agnostic masks may make them: true masks with noise, and distractors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ris_pipeline.arrays import BoolMask
from ris_pipeline.datasets.io.segmentations import encode_rle


def propose(objects: Sequence[BoolMask], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the proposals of one image, in any order, from the true masks bool (H, W) of its objects.

    Of each object one mask, as it is or with a rim of one pixel too much or too little, and its two halves; of each two
    objects the union; and five distractors: boxes and discs anywhere.
    """
    hw = objects[0].shape
    masks = []
    for mask in objects:
        size = int(rng.integers(1, 3))
        change = cv2.erode if rng.random() < 0.5 else cv2.dilate
        masks.append(change(mask.astype(np.uint8), np.ones((2 * size - 1,) * 2, np.uint8)).astype(bool))
        columns = np.flatnonzero(mask.any(axis=0))
        is_left = np.arange(hw[1]) < columns[len(columns) // 2]
        masks += [mask & is_left, mask & ~is_left]
    masks += [a | b for i, a in enumerate(objects) for b in objects[:i]]
    for k in range(5):
        canvas = np.zeros(hw, np.uint8)
        x, y = (int(rng.integers(side)) for side in hw[::-1])
        if k % 2:
            cv2.circle(canvas, (x, y), int(rng.integers(3, min(hw) // 3)), 1, -1)
        else:
            cv2.rectangle(canvas, (x, y), (x + hw[1] // 4, y + hw[0] // 4), 1, -1)
        masks.append(canvas.astype(bool))
    return [{"segmentation": encode_rle(masks[i]), "area": int(masks[i].sum())} for i in rng.permutation(len(masks))]
