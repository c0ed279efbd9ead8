"""Opening every image and mask that a data set names, to find those that cannot be used.

Worker processes do the decoding; nothing here imports torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ris_pipeline.datasets.io.files import load_picture
from ris_pipeline.datasets.io.segmentations import load_segmentation
from ris_pipeline.datasets.records import Dataset, Image, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.process.workers import process_pool

T = TypeVar("T")
Advance = Callable[[int], None]

_BATCH = 32  # what a worker process is given at once


def find_bad_images(images: Iterable[Image], workers: int, advance: Advance) -> dict[Path, str]:
    """{path: what is wrong} of the images that cannot be decoded, or have another size than their record says."""
    return {image.path: fault for image, fault in _share_out(_check_images, list(images), workers, advance)}


def find_bad_masks(dataset: Dataset, workers: int, advance: Advance) -> dict[int, str]:
    """{ref_id: what is wrong} of the refs whose mask cannot be decoded or does not fit its image."""
    masks = [(ref, dataset.images[ref.image_id]) for ref in dataset.refs if ref.segmentation is not None]
    return {ref.ref_id: fault for (ref, _), fault in _share_out(_check_masks, masks, workers, advance)}


def leave_out(dataset: Dataset, bad: Iterable[Path]) -> Dataset:
    """The data set without these images and the refs on them. Raises RisError where no ref is left."""
    gone = set(bad)
    images = {image_id: image for image_id, image in dataset.images.items() if image.path not in gone}
    refs = tuple(ref for ref in dataset.refs if ref.image_id in images)
    if not refs:
        raise RisError(f"{dataset.name} {dataset.split}: no image can be read; `ris data check --deep` says why")
    return replace(dataset, images=images, refs=refs)


def _check_images(images: Sequence[Image]) -> list[tuple[Image, str]]:
    faults = []
    for image in images:
        try:
            height, width = load_picture(image.path, "RGB").shape[:2]
        except RisError as error:
            faults.append((image, str(error)))
            continue
        if image.hw is not None and image.hw != (height, width):
            record = f"{image.hw[1]}×{image.hw[0]}"
            faults.append((image, f"{image.path} has {width}×{height} pixels, its record says {record}"))
    return faults


def _check_masks(masks: Sequence[tuple[Ref, Image]]) -> list[tuple[tuple[Ref, Image], str]]:
    faults = []
    for ref, image in masks:
        try:
            load_segmentation(ref.segmentation, image.hw)
        except (ValueError, RisError) as error:
            faults.append(((ref, image), f"ref {ref.ref_id}, image {image.path.name}: bad segmentation: {error}"))
    return faults


def _share_out(
    check: Callable[[Sequence[T]], list[tuple[T, str]]], items: Sequence[T], workers: int, advance: Advance
) -> Iterator[tuple[T, str]]:
    """What `check` finds in the items, in their order; few of them wait at a time."""
    batches = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    if workers == 0:
        for batch in batches:
            yield from check(batch)
            advance(len(batch))
        return
    waiting: deque[tuple[int, Future[Any]]] = deque()
    with process_pool(workers) as pool:
        for batch in batches:
            waiting.append((len(batch), pool.submit(check, batch)))
            if len(waiting) > 4 * workers:
                n, future = waiting.popleft()
                yield from future.result()
                advance(n)
        for n, future in waiting:
            yield from future.result()
            advance(n)
