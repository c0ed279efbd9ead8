"""Confident labels from response maps: what the inter-pixel-relation network learns from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ris_pipeline.arrays import BACKGROUND, FOREGROUND, IGNORE
from ris_pipeline.refine.crf import IRNET, Refine, refine_labels


def compute_seeds(
    response_maps: NDArray[np.float32],
    image: NDArray[np.uint8],
    foreground_threshold: float,
    background_threshold: float,
    refine: Refine = refine_labels,
) -> NDArray[np.uint8]:
    """Return confident labels, uint8 (R, H, W): 0 background, 1 foreground, 255 neither.

    `response_maps` is float (R, H, W) in [0, 1], one map a ref of the image; `image` is uint8 (H, W, 3) RGB.
    Both thresholded maps are cleaned by the dense CRF (IRNet, CVPR 2019, as TRIS uses it): foreground is what
    survives from map > foreground_threshold, background what is in neither cleaned mask. `refine`: that CRF.
    """
    thresholds = np.array([foreground_threshold, background_threshold])[:, None, None, None]
    hard = (response_maps > thresholds).astype(np.uint8)  # (2, R, H, W)
    foreground, possible = refine(image, hard.reshape(-1, *image.shape[:2]), IRNET).reshape(hard.shape)
    doubtful = np.where(possible == 1, IGNORE, BACKGROUND)
    return np.where(foreground == 1, FOREGROUND, doubtful).astype(np.uint8)
