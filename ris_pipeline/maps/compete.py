"""Maps of one image against each other: of the objects, the one that responds most keeps the pixel.

A sentence that means one thing of an image says where the other things are not. TRIS leaves that unused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ris_pipeline.arrays import BoolMask, Maps
from ris_pipeline.datasets.records import Ref

# Of a map's maximum. A map that is as high where another has its peak means that thing as well: the same object, "the
# two men" and one of them, a man and the hat that he wears.
SAME_THING = 0.9


def find_rivals(maps: Maps, refs: Sequence[Ref]) -> BoolMask:
    """Return, bool (R, R), whether ref j of the maps float32 (R, H, W) may take pixels from ref i of the same image.

    It may not where both have a sentence in common, or where map i reaches SAME_THING of its maximum at the peak of
    map j: a whole is not taken from by its parts, but takes from them what is not theirs.
    """
    peaks = maps.reshape(len(maps), -1).argmax(axis=1)
    at_peaks = maps.reshape(len(maps), -1)[:, peaks]  # of map i where map j is largest
    sentences = [{" ".join(e.sentence.casefold().split()) for e in ref.expressions} for ref in refs]
    is_apart = np.array([[own.isdisjoint(other) for other in sentences] for own in sentences])
    rivals: BoolMask = is_apart & (at_peaks < SAME_THING * at_peaks.diagonal()[:, None])
    return rivals


def let_compete(maps: Maps, rivals: BoolMask) -> Maps:
    """Return the maps float32 (R, H, W) with 0 where one of a map's rivals, bool (R, R), is larger.

    They are compared after division by their maxima, so each keeps at least its peak.
    """
    relative = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-5)
    kept = [
        np.where((own >= relative[may_take]).all(axis=0), given, 0)
        for given, own, may_take in zip(maps, relative, rivals, strict=True)
    ]
    return np.stack(kept)
