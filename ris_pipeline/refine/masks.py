"""The dense CRF at test time: on the masks of an image of any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ris_pipeline.arrays import Pixels
from ris_pipeline.datasets.io.images import limit_size, resize_image
from ris_pipeline.datasets.io.labels import resize_labels
from ris_pipeline.refine.crf import Refine, clean_labels, refine_labels

MAX_SIDE = 640  # pixels; larger photographs are cleaned at this size, as pseudo-labels are


def clean_masks(image: Pixels, masks: NDArray[np.bool_], refine: Refine = refine_labels) -> NDArray[np.bool_]:
    """Return the masks bool (K, H, W) of an image after `clean_labels`, at a longest side of MAX_SIDE pixels."""
    height, width = image.shape[:2]
    hw = limit_size((height, width), MAX_SIDE)
    labels = clean_labels(resize_image(image, hw), resize_labels(masks.astype(np.uint8), hw), refine)
    return resize_labels(labels, (height, width)).astype(bool)
