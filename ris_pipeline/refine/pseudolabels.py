"""From response maps to pseudo-label PNGs: thresholded, or refined by inter-pixel relations.

Each function writes <ref_id>.png files into a folder and keeps those that are already there and whole: an interrupted
run resumes at the first missing one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ris_pipeline.arrays import FOREGROUND, Maps, Pixels
from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets.io.images import (
    limit_image,
    limit_size,
    load_image,
    normalise,
    resize_square,
    size_of,
    to_batch,
)
from ris_pipeline.datasets.io.labels import has_right_checksums, load_label, resize_labels
from ris_pipeline.datasets.records import Dataset, ImageGroup, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.maps.compete import DrawnSentences, find_drawn_rivals, find_rivals, let_compete
from ris_pipeline.maps.mirror import Mirrored
from ris_pipeline.maps.proposals import choose_proposals, load_proposals
from ris_pipeline.maps.respond import Responder, respond
from ris_pipeline.maps.rule import compute_map, show_map
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.process.ahead import run_ahead
from ris_pipeline.process.console import Advance
from ris_pipeline.process.workers import map_processes
from ris_pipeline.refine.crf import clean_labels
from ris_pipeline.refine.instances import label_walked
from ris_pipeline.refine.labels import write_labels, write_refined, write_seeds, write_segmented, write_walked
from ris_pipeline.refine.mean_field import refine_on
from ris_pipeline.refine.seeds import compute_seeds
from ris_pipeline.refine.walk import walk_pieces

TEMPERATURE = 0.05  # of the softmax over PRMS's mean cosines that weights a ref's maps; chosen on shapes
T = TypeVar("T")

CPU = torch.device("cpu")
AHEAD = 2  # images that are read before their turn: a photograph may take 200 MB until it is resized
AT_ONCE = 8  # images that IRNet sees together on CUDA: of 640×640 pixels about 3 GB of its memory


def compute_selected_maps(store: ResponseStore, refs: Sequence[Ref], image_hw: tuple[int, int]) -> Maps:
    """Return the response map of each ref that PRMS selected, float32 (R, H, W) in [0, 1], of refs of one image.

    Where the store was filled without PRMS: the map of each ref's first sentence.
    """
    rows = [store.rows_of_ref(ref.ref_id)[store.selected(ref.ref_id) if store.has_selection else 0] for ref in refs]
    return _compute_maps(store, rows, image_hw)


def compute_mean_maps(store: ResponseStore, refs: Sequence[Ref], image_hw: tuple[int, int]) -> Maps:
    """Return the mean map of each ref's sentences, divided by its maximum, float32 (R, H, W), of refs of one image."""
    return _mean_maps([_compute_maps(store, store.rows_of_ref(ref.ref_id), image_hw) for ref in refs])


def compute_weighted_maps(store: ResponseStore, refs: Sequence[Ref], image_hw: tuple[int, int]) -> Maps:
    """Return `compute_mean_maps` with each map weighted by the softmax of its PRMS score over TEMPERATURE.

    Raises RisError where the store was filled without PRMS.
    """
    if not store.has_selection:
        raise RisError(f"{store.path}: combine = weighted needs PRMS; dump the responses with prms=true")
    scores = store.prms_score
    maps, weights = [], []
    for ref in refs:
        rows = store.rows_of_ref(ref.ref_id)
        cosines = scores[rows] / len(rows)
        weights.append(np.exp((cosines - cosines.max()) / TEMPERATURE))
        maps.append(_compute_maps(store, rows, image_hw))
    return _mean_maps(maps, weights)


def _mean_maps(maps: Sequence[Maps], weights: Sequence[Maps] | None = None) -> Maps:
    """Return the mean of each ref's maps, divided by its maximum."""
    if weights is None:
        means = np.stack([own.mean(axis=0) for own in maps])
    else:
        means = np.stack(
            [np.average(own, axis=0, weights=w).astype(np.float32) for own, w in zip(maps, weights, strict=True)]
        )
    relative: Maps = means / np.maximum(means.max(axis=(1, 2), keepdims=True), 1e-5)
    return relative


def _compute_maps(store: ResponseStore, rows: Sequence[int], image_hw: tuple[int, int]) -> Maps:
    maps = compute_map(torch.from_numpy(store.read_grids(rows)), store.rule, store.input_size, image_hw)
    shown: Maps = show_map(maps, store.rule).numpy()  # a compared method may store logits; thresholds are of maps
    return shown


_COMBINE = {"prms": compute_selected_maps, "mean": compute_mean_maps, "weighted": compute_weighted_maps}


def combine_maps(
    store: ResponseStore, group: ImageGroup, refs: Sequence[Ref], hw: tuple[int, int], config: PseudolabelConfig,
    drawn: DrawnSentences | None = None,
) -> Maps:  # fmt: skip
    """Return one map for each of some refs of an image, float32 (R, *hw) in [0, 1], as its labels are made of it.

    `drawn`: sentences that compete beside the refs, or instead of them.
    """
    compute = _COMBINE[config.combine]
    if not config.compete:
        maps = compute(store, refs, hw)
    else:
        maps = compute(store, group.refs, hw)
        maps = let_compete(maps, maps, find_rivals(maps, _sentences(group)))[[group.refs.index(ref) for ref in refs]]
    if drawn is not None:
        others = show_map(compute_map(drawn.respond(group), store.rule, store.input_size, hw), store.rule).numpy()
        maps = let_compete(maps, others, find_drawn_rivals(maps, others))
    return maps


def save_thresholded(
    dataset: Dataset, store: ResponseStore, groups: Iterable[ImageGroup], folder: Path,
    config: PseudolabelConfig, drawn: DrawnSentences | None, proposals: Path | None, advance: Advance,
) -> None:  # fmt: skip
    """Write the plain pseudo-label of each ref: 1 where its map exceeds the threshold.

    `proposals`: a folder of class-agnostic masks, of which those become the label that the map covers best.
    """
    for group in groups:
        hw = size_of(dataset.images[group.image_id])
        refs = _missing(group, folder, hw)
        if refs:
            maps = combine_maps(store, group, refs, hw, config, drawn)
            if proposals is None:
                labels = FOREGROUND * (maps > config.threshold).astype(np.uint8)
            else:
                labels = choose_proposals(maps, load_proposals(proposals, dataset.images[group.image_id], hw))
            write_labels(folder, _ids(refs), labels)
        advance(len(group.refs))


def save_seeds(
    dataset: Dataset, store: ResponseStore, groups: Iterable[ImageGroup], folder: Path,
    config: PseudolabelConfig, workers: int, advance: Advance, device: torch.device = CPU,
) -> None:  # fmt: skip
    """Write the confident labels (0, 1, 255) that IRNet learns from, images shared out to worker processes.

    On CUDA the dense CRF is the device's, elsewhere that of the worker processes. The maps are those that PRMS
    selected, whatever `combine` and `compete` say: where two maps compete, they meet where the image has no edge.
    """
    on_device, refine = device.type == "cuda", refine_on(device)
    label_hw = partial(limit_size, longest=config.max_side)
    prepare = partial(limit_image, longest=config.max_side)

    def calls() -> Iterator[tuple[Any, ...]]:
        for group, refs, image in _read_missing(dataset, groups, folder, prepare, label_hw):
            if image is not None:
                maps = compute_selected_maps(store, refs, image.shape[:2])
                limits = config.fg_threshold, config.bg_threshold
                if on_device:
                    yield folder, _ids(refs), compute_seeds(maps, image, *limits, refine)
                else:
                    yield folder, _ids(refs), maps, image, *limits
            advance(len(group.refs))

    _run(write_labels if on_device else write_seeds, calls(), workers)


def save_refined(
    dataset: Dataset, store: ResponseStore, groups: Iterable[ImageGroup], folder: Path, net: IRNet,
    config: PseudolabelConfig, drawn: DrawnSentences | None, device: torch.device, workers: int, advance: Advance,
) -> None:  # fmt: skip
    """Write the refined pseudo-label of each ref: boundaries once per image, one walk for all its refs.

    On CUDA walk and dense CRF are the device's, elsewhere those of the worker processes, and IRNet sees several images
    of one size at once.
    """
    net.to(device).eval()
    beta, n_steps, radius = config.beta, 2**config.log2_steps, config.walk_radius
    on_device, refine = device.type == "cuda", refine_on(device)
    write = (write_labels if config.crf else write_walked) if on_device else write_refined
    prepare = partial(limit_image, longest=config.max_side)

    def calls() -> Iterator[tuple[Any, ...]]:
        read = _read_missing(dataset, groups, folder, prepare)
        for group, refs, image, fields in _find_boundaries(net, read, AT_ONCE if on_device else 1):
            if image is not None and fields is not None:
                image_hw, hw = size_of(dataset.images[group.image_id]), image.shape[:2]
                maps = combine_maps(store, group, refs, hw, config, drawn)
                if on_device:
                    walked, counts = walk_pieces(maps, *fields, beta=beta, n_steps=n_steps, radius=radius)
                    if config.crf:
                        labels = clean_labels(image, label_walked(walked, counts, hw, config.background), refine)
                        yield folder, _ids(refs), resize_labels(labels, image_hw)
                    else:
                        yield folder, _ids(refs), walked, counts, hw, image_hw, config.background
                else:
                    own = (field.cpu().numpy() for field in fields)
                    kept = image if config.crf else None
                    yield folder, _ids(refs), maps, *own, image_hw, config.background, beta, n_steps, radius, kept
            advance(len(group.refs))

    _run(write, calls(), workers)


def save_segmented(
    dataset: Dataset, network: Responder, groups: Iterable[ImageGroup], folder: Path,
    config: PseudolabelConfig, workers: int, advance: Advance,
) -> None:  # fmt: skip
    """Write the pseudo-label of each ref as a trained network sees it: the mean over its sentences and the mirror.

    On CUDA the dense CRF is the device's, elsewhere that of the worker processes.
    """
    both = Mirrored(network)
    cleans_here, refine = config.crf and network.device.type == "cuda", refine_on(network.device)

    def prepare(image: Pixels) -> tuple[Pixels, Pixels | None]:
        return resize_square(image, network.input_size), limit_image(image, config.max_side) if config.crf else None

    def calls() -> Iterator[tuple[Any, ...]]:
        for group, refs, read in _read_missing(dataset, groups, folder, prepare):
            if read is not None:
                square, image = read
                image_hw = size_of(dataset.images[group.image_id])
                hw = limit_size(image_hw, config.max_side)
                (grids,) = respond(both, to_batch([square], network.device), [group])
                shown = show_map(compute_map(grids, both.rule, both.input_size, hw), both.rule).cpu()
                counts = [len(ref.expressions) for ref in group.refs]
                maps = _mean_maps([own.numpy() for own in torch.split(shown, counts)])
                if config.compete:
                    maps = let_compete(maps, maps, find_rivals(maps, _sentences(group)))
                kept = maps[[group.refs.index(ref) for ref in refs]]
                if cleans_here and image is not None:
                    labels = clean_labels(image, FOREGROUND * (kept > config.round_threshold).astype(np.uint8), refine)
                    yield folder, _ids(refs), resize_labels(labels, image_hw)
                else:
                    yield folder, _ids(refs), kept, image_hw, config.round_threshold, image
            advance(len(group.refs))

    _run(write_labels if cleans_here else write_segmented, calls(), workers)


def _read_missing(
    dataset: Dataset, groups: Iterable[ImageGroup], folder: Path, prepare: Callable[[Pixels], T],
    label_hw: Callable[[tuple[int, int]], tuple[int, int]] = lambda hw: hw,
) -> Iterator[tuple[ImageGroup, list[Ref], T | None]]:  # fmt: skip
    """Yield all groups, the `_missing` refs of each, and where there are any what `prepare` makes of its image.

    The next images are read meanwhile. `label_hw`: the size of the labels of an image of a size.
    """

    def read(group: ImageGroup) -> tuple[ImageGroup, list[Ref], T | None]:
        image = dataset.images[group.image_id]
        refs = _missing(group, folder, label_hw(size_of(image)))
        return group, refs, prepare(load_image(image)) if refs else None

    with closing(run_ahead(read, groups, AHEAD)) as found:
        yield from found


def _find_boundaries(
    net: IRNet, read: Iterator[tuple[ImageGroup, list[Ref], Pixels | None]], n: int
) -> Iterator[tuple[ImageGroup, list[Ref], Pixels | None, tuple[Tensor, Tensor] | None]]:
    """Yield what is read, and where there is an image IRNet's boundary (h, w) and displacement (2, h, w) of it.

    `n` images are looked at together, those of one size at once; so their order changes.
    """
    device = next(net.parameters()).device
    while waiting := list(islice(read, n)):
        of_size: dict[tuple[int, ...], list[tuple[ImageGroup, list[Ref], Pixels]]] = {}
        for group, refs, image in waiting:
            if image is None:
                yield group, refs, None, None
            else:
                of_size.setdefault(image.shape, []).append((group, refs, image))
        for same in of_size.values():
            pixels = torch.stack([normalise(image) for _, _, image in same]).to(device)
            boundaries, displacements = net.boundary_displacement(pixels)
            for (group, refs, image), boundary, displacement in zip(same, boundaries, displacements, strict=True):
                yield group, refs, image, (boundary[0], displacement)


def _run(write: Callable[..., None], calls: Iterator[tuple[Any, ...]], workers: int) -> None:
    with closing(map_processes(write, calls, workers)) as done:
        for _ in done:
            pass


def _sentences(group: ImageGroup) -> list[list[str]]:
    return [[expression.sentence for expression in ref.expressions] for ref in group.refs]


def _ids(refs: Sequence[Ref]) -> list[int]:
    return [ref.ref_id for ref in refs]


def _missing(group: ImageGroup, folder: Path, hw: tuple[int, int]) -> list[Ref]:
    """Return the refs of the image without a whole label of the size hw: a crash can leave an empty file."""
    return [ref for ref in group.refs if not _is_whole(label_path(folder, ref.ref_id), hw)]


def _is_whole(path: Path, hw: tuple[int, int]) -> bool:
    if not path.exists():
        return False
    try:
        return has_right_checksums(path) and load_label(path).shape == hw
    except RisError:
        return False
