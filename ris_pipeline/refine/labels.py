"""What a worker process does for one image: refine its refs' maps and write a PNG for each.

Nothing here imports torch: a worker process starts in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ris_pipeline.arrays import BACKGROUND, FOREGROUND, IGNORE, Maps
from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.datasets.io.labels import resize_labels, save_label
from ris_pipeline.refine.crf import CLIP_ES, DenseCrf, clean_labels, odds_of_scores
from ris_pipeline.refine.instances import compute_pseudolabels, label_walked
from ris_pipeline.refine.seeds import compute_seeds


def write_seeds(
    folder: Path,
    ref_ids: Sequence[int],
    maps: Maps,
    image: NDArray[np.uint8],
    foreground_threshold: float,
    background_threshold: float,
) -> None:
    """Write folder/<ref_id>.png: the confident labels of the maps float32 (R, H, W) of one image."""
    write_labels(folder, ref_ids, compute_seeds(maps, image, foreground_threshold, background_threshold))


def write_confident(
    folder: Path, sent_ids: Sequence[int], maps: Maps, image: NDArray[np.uint8], confidence: float
) -> None:
    """Write folder/<sent_id>.png: labels of the maps float32 (n, H, W) of one image after CLIP-ES's dense CRF.

    255 where neither label has a probability of `confidence`, in [0.5, 1), and throughout where no object is left.
    """
    odds = DenseCrf(image, CLIP_ES).log_odds(odds_of_scores(maps, 1 - maps))
    labels = np.where(odds > 0, FOREGROUND, BACKGROUND)
    is_sure = np.abs(odds) >= np.log(confidence / (1 - confidence))
    # What a sentence means is there: a label without it is wrong, and teaches nothing.
    is_sure &= (labels == FOREGROUND).any(axis=(1, 2), keepdims=True)
    write_labels(folder, sent_ids, np.where(is_sure, labels, IGNORE).astype(np.uint8))


def write_refined(
    folder: Path,
    ref_ids: Sequence[int],
    maps: Maps,
    boundary: Maps,
    displacement: Maps,
    image_hw: tuple[int, int],
    threshold: float,
    beta: float,
    n_steps: int,
    radius: int,
    image: NDArray[np.uint8] | None = None,
) -> None:
    """Write folder/<ref_id>.png of image_hw: the refined pseudo-labels of the maps float32 (R, H, W) of one image.

    `image`: uint8 (H, W, 3), to clean them by the dense CRF.
    """
    hw = (maps.shape[1], maps.shape[2])
    labels = compute_pseudolabels(
        maps, boundary, displacement, hw, threshold=threshold, beta=beta, n_steps=n_steps, radius=radius
    )
    if image is not None:
        labels = clean_labels(image, labels)
    write_labels(folder, ref_ids, resize_labels(labels, image_hw))


def write_walked(
    folder: Path,
    ref_ids: Sequence[int],
    walked: Maps,
    counts: Sequence[int],
    hw: tuple[int, int],
    image_hw: tuple[int, int],
    threshold: float,
) -> None:
    """Write folder/<ref_id>.png as `write_refined`, of what the pieces of all maps (H, W) are after the walk.

    `walked` is float32 (ΣI, h, w); `counts`: how many of them are each ref's.
    """
    write_labels(folder, ref_ids, resize_labels(label_walked(walked, counts, hw, threshold), image_hw))


def write_segmented(
    folder: Path,
    ref_ids: Sequence[int],
    maps: Maps,
    image_hw: tuple[int, int],
    threshold: float,
    image: NDArray[np.uint8] | None = None,
) -> None:
    """Write folder/<ref_id>.png of image_hw: 1 where the maps float32 (R, H, W) of one image exceed the threshold.

    `image`: uint8 (H, W, 3), to clean them by the dense CRF.
    """
    labels = np.where(maps > threshold, FOREGROUND, BACKGROUND).astype(np.uint8)
    if image is not None:
        labels = clean_labels(image, labels)
    write_labels(folder, ref_ids, resize_labels(labels, image_hw))


def write_labels(folder: Path, ref_ids: Sequence[int], labels: NDArray[np.uint8]) -> None:
    """Write folder/<ref_id>.png for each of the labels uint8 (R, H, W)."""
    for ref_id, label in zip(ref_ids, labels, strict=True):
        save_label(label_path(folder, ref_id), label)
