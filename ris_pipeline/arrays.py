"""The arrays that all rooms speak of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BACKGROUND, FOREGROUND, IGNORE = 0, 1, 255  # the values of a label

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels; right and bottom lie outside
Pixels = NDArray[np.uint8]  # (H, W, 3) RGB, or the labels (H, W)
BoolMask = NDArray[np.bool_]  # (H, W), True on the object
Maps = NDArray[np.float32]  # (R, H, W) in [0, 1], one a ref
