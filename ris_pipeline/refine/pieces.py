"""Labels in several pieces: PRMS, asked about masks in place of maps, keeps the piece that the sentences mean.

A network that wavers between two objects marks both. Seen alone, each is something that CLIP can tell from the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.arrays import BACKGROUND, FOREGROUND, BoolMask
from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.datasets.io.images import load_image, resize_square, to_batch
from ris_pipeline.datasets.io.labels import load_label, save_label
from ris_pipeline.datasets.records import Dataset, ImageGroup
from ris_pipeline.maps.select import compute_contrast, encode_masked
from ris_pipeline.networks.clip import Clip

SMALLEST = 0.1  # of the largest piece's pixels: what is smaller is no object of its own
MOST = 8  # pieces that are looked at, the largest ones: a plain label may be in a hundred
CONTRAST = 0.7  # weight of the sentences about other refs of the image; chosen on shapes, where 0.5 to 0.9 do as well


def find_pieces(mask: BoolMask) -> list[BoolMask]:
    """Return the connected pieces of a mask bool (H, W), the largest first, without those under SMALLEST of it."""
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    sizes = stats[1:, cv2.CC_STAT_AREA]  # the first is the background
    order = np.argsort(-sizes, kind="stable")[:MOST]
    return [numbers == 1 + i for i in order if sizes[i] >= SMALLEST * sizes.max()]


@torch.no_grad()
def keep_meant_pieces(
    dataset: Dataset, groups: Iterable[ImageGroup], folder: Path, aux: Clip, side: int, advance: Callable[[int], None]
) -> None:
    """Rewrite each label <ref_id>.png of the folder that is in several pieces: the piece that PRMS selects, or all.

    `aux`: the frozen CLIP; `side`: pixels of the square in which it sees an image. What has been rewritten stays as it
    is when this runs again.
    """
    for group in groups:
        labels = {ref.ref_id: load_label(label_path(folder, ref.ref_id)) for ref in group.refs}
        found = {ref_id: find_pieces(label == FOREGROUND) for ref_id, label in labels.items()}
        unclear = [ref_id for ref_id, pieces in found.items() if len(pieces) > 1]
        if unclear:
            square = resize_square(load_image(dataset.images[group.image_id]), side)
            pixels = to_batch([square], next(aux.parameters()).device)
            texts = aux.encode_text(aux.tokenize(group.sentences))
        for ref_id in unclear:
            label = labels[ref_id]
            candidates = np.stack([label == FOREGROUND, *found[ref_id]])
            means_it = torch.tensor([row_id == ref_id for row_id in group.ref_ids], device=texts.device)
            meant = candidates[_select(candidates, pixels, texts[means_it], texts[~means_it], aux)]
            if not meant[label == FOREGROUND].all():
                rest = (label == FOREGROUND) & ~meant
                save_label(label_path(folder, ref_id), np.where(rest, BACKGROUND, label).astype(np.uint8))
        advance(len(group.refs))


def _select(masks: NDArray[np.bool_], pixels: Tensor, texts: Tensor, others: Tensor, aux: Clip) -> int:
    """Return which of the masks bool (M, H, W) of an image (1, 3, S, S) suits the texts (K, D) and not the others."""
    grids = torch.from_numpy(masks.astype(np.float32)).to(pixels.device)
    features = encode_masked(grids, pixels, aux, "normalised")
    suits = (F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).T).mean(dim=1)
    return int((suits - CONTRAST * compute_contrast(features, others)).argmax())
