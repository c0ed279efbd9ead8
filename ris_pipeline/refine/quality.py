"""What a run of pseudo-labels says of itself: how much to trust it is seen without a look at the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ris_pipeline.arrays import FOREGROUND, IGNORE
from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.datasets.io.labels import load_label
from ris_pipeline.datasets.records import ImageGroup

TINY_SHARE = 0.001  # of an image's pixels: 20×15 of 640×480


def count_labels(
    folder: Path, groups: Sequence[ImageGroup], earlier: Path | None, advance: Callable[[int], None]
) -> dict[str, int]:
    """Return what the labels of all refs in a folder hold. Those of one image are in memory at a time.

    empty: labels without foreground. tiny: with foreground in less than TINY_SHARE of the image. The others are in
    thousandths. ignored_per_mille: of all pixels, those that no stage learns from. overlap_per_mille: of the pixels
    that any label of an image of several refs has as foreground, those that more than one has. agreement_per_mille,
    where the folder `earlier` has labels of the same refs: the mean IoU with those; of two empty labels it is 1.
    Raises RisError for a missing label.
    """
    n_refs = n_empty = n_tiny = n_ignored = n_pixels = n_covered = n_shared = 0
    agreement = 0.0
    for group in groups:
        n_claims: np.ndarray = np.zeros((), np.int64)  # of each pixel
        for ref in group.refs:
            label = load_label(label_path(folder, ref.ref_id))
            mask = label == FOREGROUND
            share = np.count_nonzero(mask) / label.size
            n_empty += int(share == 0)
            n_tiny += int(0 < share < TINY_SHARE)
            n_ignored += int(np.count_nonzero(label == IGNORE))
            n_pixels += label.size
            n_claims = n_claims + mask
            if earlier is not None:
                before = load_label(label_path(earlier, ref.ref_id)) == FOREGROUND
                n_union = np.count_nonzero(mask | before)
                agreement += np.count_nonzero(mask & before) / n_union if n_union else 1
        if len(group.refs) > 1:
            n_covered += int(np.count_nonzero(n_claims))
            n_shared += int(np.count_nonzero(n_claims > 1))
        n_refs += len(group.refs)
        advance(len(group.refs))
    counts = {
        "refs": n_refs,
        "empty": n_empty,
        "tiny": n_tiny,
        "ignored_per_mille": round(1000 * n_ignored / max(n_pixels, 1)),
        "overlap_per_mille": round(1000 * n_shared / max(n_covered, 1)),
    }
    return counts if earlier is None else {**counts, "agreement_per_mille": round(1000 * agreement / max(n_refs, 1))}
