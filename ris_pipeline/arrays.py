"""The arrays that all rooms share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BACKGROUND, FOREGROUND, IGNORE = 0, 1, 255  # the values of a label

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels; right and bottom are one past the box
Pixels = NDArray[np.uint8]  # (H, W, 3) RGB; labels and coverage are (H, W)
BoolMask = NDArray[np.bool_]  # (H, W), True on the object
Maps = NDArray[np.float32]  # (R, H, W) in [0, 1], one for each ref
