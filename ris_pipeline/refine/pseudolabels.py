"""From selected response maps to pseudo-label PNGs: thresholded, or refined by inter-pixel relations.

Each function writes <ref_id>.png files into a folder and leaves those alone that are there and whole: a run that
broke off goes on with the first missing one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets.io.images import load_image, normalise, size_of
from ris_pipeline.datasets.records import Dataset, ImageGroup, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.maps.store import ResponseStore, compute_map
from ris_pipeline.masks import has_right_checksums, load_label
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.process.workers import process_pool
from ris_pipeline.refine.labels import write_labels, write_refined, write_seeds

Advance = Callable[[int], None]
Maps = NDArray[np.float32]


def compute_selected_maps(store: ResponseStore, refs: Sequence[Ref], image_hw: tuple[int, int]) -> Maps:
    """The response map of each ref that PRMS selected, float32 (R, H, W) in [0, 1], of refs of one image.

    Where the store was filled without PRMS: the map of each ref's first sentence.
    """
    rows = [store.rows_of_ref(ref.ref_id)[store.selected(ref.ref_id) if store.has_selection else 0] for ref in refs]
    logits = torch.from_numpy(store.logits_of(rows))
    maps: Maps = compute_map(logits, store.input_size, image_hw).numpy()
    return maps


def save_thresholded(
    dataset: Dataset, store: ResponseStore, groups: Sequence[ImageGroup], folder: Path, threshold: float,
    advance: Advance,
) -> None:  # fmt: skip
    """Write the plain pseudo-label of each ref: 1 where its selected map exceeds the threshold."""
    for group in groups:
        refs = _missing(group, dataset, folder)
        if refs:
            maps = compute_selected_maps(store, refs, size_of(dataset.images[group.image_id]))
            write_labels(folder, _ids(refs), (maps > threshold).astype(np.uint8))
        advance(len(group.refs))


def save_seeds(
    dataset: Dataset, store: ResponseStore, groups: Sequence[ImageGroup], folder: Path,
    config: PseudolabelConfig, workers: int, advance: Advance,
) -> None:  # fmt: skip
    """Write the confident labels (0, 1, 255) that IRNet learns from, images shared out to worker processes."""
    with _submitting(workers) as submit:
        for group in groups:
            refs = _missing(group, dataset, folder)
            if refs:
                image = load_image(dataset.images[group.image_id])
                maps = compute_selected_maps(store, refs, (image.shape[0], image.shape[1]))
                thresholds = config.fg_threshold, config.bg_threshold
                submit(write_seeds, folder, _ids(refs), maps, image, *thresholds)
            advance(len(group.refs))


def save_refined(
    dataset: Dataset, store: ResponseStore, groups: Sequence[ImageGroup], folder: Path, net: IRNet,
    config: PseudolabelConfig, device: torch.device, workers: int, advance: Advance,
) -> None:  # fmt: skip
    """Write the refined pseudo-label of each ref: boundaries once per image, one walk for all its refs."""
    net.to(device).eval()
    with _submitting(workers) as submit:
        for group in groups:
            refs = _missing(group, dataset, folder)
            if refs:
                image = load_image(dataset.images[group.image_id])
                edge, displacement = net.edge_displacement(normalise(image)[None].to(device))
                hw = (image.shape[0], image.shape[1])
                maps = compute_selected_maps(store, refs, hw)
                submit(
                    write_refined, folder, _ids(refs), maps, edge[0, 0].cpu().numpy(),
                    displacement[0].cpu().numpy(), hw, config.background, config.beta, 2**config.log2_steps,
                    config.walk_radius,
                )  # fmt: skip
            advance(len(group.refs))


def _ids(refs: Sequence[Ref]) -> list[int]:
    return [ref.ref_id for ref in refs]


def _missing(group: ImageGroup, dataset: Dataset, folder: Path) -> list[Ref]:
    """The refs of the image without a whole label: since a crash there may be a name without its contents."""
    return [ref for ref in group.refs if not _is_whole(folder / f"{ref.ref_id}.png", dataset, group)]


def _is_whole(path: Path, dataset: Dataset, group: ImageGroup) -> bool:
    if not path.exists():
        return False
    try:
        return has_right_checksums(path) and load_label(path).shape == size_of(dataset.images[group.image_id])
    except RisError:
        return False


@contextmanager
def _submitting(workers: int) -> Iterator[Callable[..., None]]:
    """A function submit(f, *args) that runs f in one of the worker processes, or at once where there is none.

    At most a few calls wait: the memory in use does not grow with the data set. An error in a worker is
    raised here.
    """
    if workers == 0:
        yield lambda function, *arguments: function(*arguments)
        return
    waiting: deque[Future[Any]] = deque()
    with process_pool(workers) as pool:

        def submit(function: Callable[..., None], *arguments: Any) -> None:
            waiting.append(pool.submit(function, *arguments))
            if len(waiting) > 4 * workers:
                waiting.popleft().result()

        yield submit
        for future in waiting:
            future.result()
