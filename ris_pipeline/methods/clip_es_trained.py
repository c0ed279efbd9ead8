"""CLIP-ES†: TRIS's Step-1 network, taught by CLIP-ES's maps after a dense CRF, where that is sure (TRIS, Table 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ris_pipeline.datasets.io.images import limit_size, load_image, resize_image, size_of
from ris_pipeline.datasets.records import Dataset
from ris_pipeline.maps.rule import compute_map
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods.configs import ClipEsTrainedConfig
from ris_pipeline.methods.supervised import build, build_task, find_missing, plan, wrap
from ris_pipeline.process.workers import map_processes
from ris_pipeline.refine.labels import write_confident
from ris_pipeline.training.batches import SentenceLabels, Targets

__all__ = ["build", "build_task", "open_targets", "plan", "wrap"]


def open_targets(
    config: ClipEsTrainedConfig,
    dataset: Dataset,
    store: ResponseStore,
    folder: Path,
    workers: int,
    advance: Callable[[int], None],
) -> Targets:
    """Return the labels of the sentences, at most max_side long; written into `folder` where they are not there."""

    def calls() -> Iterator[tuple[Any, ...]]:
        for group, sent_ids, rows in find_missing(dataset, store, folder, advance):
            record = dataset.images[group.image_id]
            hw = limit_size(size_of(record), config.max_side)
            maps = compute_map(torch.from_numpy(store.read_grids(rows)), store.rule, store.input_size, hw)
            yield folder, sent_ids, maps.numpy(), resize_image(load_image(record), hw), config.confidence

    with closing(map_processes(write_confident, calls(), workers)) as done:
        for _ in done:
            pass
    return SentenceLabels(folder)
