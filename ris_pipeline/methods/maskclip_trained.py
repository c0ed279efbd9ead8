"""MaskCLIP†: TRIS's Step-1 network, taught by MaskCLIP's thresholded maps (TRIS, Table 1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ris_pipeline.arrays import FOREGROUND
from ris_pipeline.datasets.records import Dataset
from ris_pipeline.maps.rule import compute_map, compute_mask
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods.configs import SupervisedConfig
from ris_pipeline.methods.supervised import build, build_task, find_missing, plan, wrap
from ris_pipeline.refine.labels import write_labels
from ris_pipeline.training.batches import SentenceLabels, Targets

__all__ = ["build", "build_task", "open_targets", "plan", "wrap"]


def open_targets(
    config: SupervisedConfig,
    dataset: Dataset,
    store: ResponseStore,
    folder: Path,
    workers: int,
    advance: Callable[[int], None],
) -> Targets:
    """Return MaskCLIP's masks, at the size that the network reads; written into `folder` where they are not there."""
    hw = (config.input_size, config.input_size)
    for _, sent_ids, rows in find_missing(dataset, store, folder, advance):
        maps = compute_map(torch.from_numpy(store.read_grids(rows)), store.rule, store.input_size, hw)
        write_labels(folder, sent_ids, FOREGROUND * compute_mask(maps, store.rule).numpy().astype(np.uint8))
    return SentenceLabels(folder)
