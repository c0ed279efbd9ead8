"""The generated data set, written in the REFER layout and read like any data set of that layout."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ris_pipeline.arrays import BoolMask, Pixels
from ris_pipeline.artifacts.files import fsync_tree, replace_folder, restore_folder, write_json
from ris_pipeline.artifacts.locks import hold
from ris_pipeline.datasets.io.segmentations import encode_rle, extent_of
from ris_pipeline.errors import RisError, did_you_mean
from ris_pipeline.process.workers import map_processes
from ris_pipeline.shapes.render import SHAPES, draw_background, render
from ris_pipeline.shapes.scenes import VARIANTS, describe, sample_scene

STAMP = "generated.json"  # the settings that the folder was generated with
IMAGE_SIZES_HW = ((160, 160), (144, 176), (176, 144))
# testA: roomy pictures, testB: crowded pictures; RefCOCO's test splits differ too.
THINGS_IN = {"train": (3, 6), "val": (3, 6), "testA": (3, 4), "testB": (5, 6)}
MAX_REFS_PER_IMAGE = 3
MIN_VISIBLE = 0.6  # share of an object that must be seen for a sentence to refer to it


@dataclass(frozen=True, slots=True)
class Item:
    """A picture of the data set to draw."""

    image_id: int
    split: str
    seed: tuple[int, ...]
    variant: str


@dataclass(frozen=True, slots=True)
class Target:
    """An object that sentences refer to: its visible mask bool (H, W), its shape, three sentences."""

    mask: BoolMask
    shape: str
    sentences: list[str]


def draw_item(item: Item) -> tuple[Pixels, list[Target]]:
    """Return the picture, uint8 (H, W, 3) RGB, and one to three objects to refer to, the repeated kind first."""
    rng = np.random.default_rng(item.seed)
    while True:
        hw = IMAGE_SIZES_HW[rng.integers(len(IMAGE_SIZES_HW))]
        things = sample_scene(rng, THINGS_IN[item.split])
        image, masks, visible = render(things, draw_background(hw, rng))
        n_alike = [sum(other.shape == thing.shape for other in things) for thing in things]
        order = sorted(range(len(things)), key=lambda i: -n_alike[i])
        targets: list[Target] = []
        for i in order:
            if visible[i] < MIN_VISIBLE or len(targets) == MAX_REFS_PER_IMAGE:
                continue
            sentences = describe(things, i, item.variant, rng)
            if sentences is not None:
                targets.append(Target(masks[i], things[i].shape, sentences))
        if targets:
            return image, targets


def _save_item(item: Item, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw and write one picture; return its COCO record, and one record per target."""
    image, targets = draw_item(item)
    name = f"{item.image_id:06d}.jpg"
    if not cv2.imwrite(str(folder / name), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise RisError(f"{folder / name}: cannot be written; check space and permissions")
    records = []
    for target in targets:
        left, top, right, bottom = extent_of(target.mask) or (0.0, 0.0, 0.0, 0.0)
        records.append(
            {
                "segmentation": encode_rle(target.mask),
                "bbox": [left, top, right - left, bottom - top],
                "area": float(target.mask.sum()),
                "category_id": SHAPES.index(target.shape) + 1,
                "sentences": target.sentences,
            }
        )
    height, width = image.shape[:2]
    return {"id": item.image_id, "file_name": name, "height": height, "width": width}, records


def _list_items(n_images: Mapping[str, int], variant: str, seed: int) -> Iterator[Item]:
    image_ids = count(1)
    for k, split in enumerate(THINGS_IN):
        for i in range(n_images.get(split, 0)):
            yield Item(next(image_ids), split, (seed, k, i), variant)


def generate(
    folder: Path,
    variant: str,
    n_images: Mapping[str, int],
    seed: int,
    workers: int,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Write the data set into folder: images/, refer/<variant>/refs(shapes).p and instances.json.

    generated.json, which holds the settings, marks it as whole. The same seed gives the same pictures and sentences,
    whatever the number of workers. Nothing has folder's name before all of it is written.
    """
    if variant not in VARIANTS:
        raise RisError(f"unknown variant {variant!r}{did_you_mean(variant, VARIANTS)}")
    partial = folder.with_name(f"{folder.name}.partial")
    with hold(_lock_of(folder)):
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "images").mkdir(parents=True)
        instances, refs = _draw(list(_list_items(n_images, variant, seed)), partial / "images", workers, advance)
        layout = partial / "refer" / variant
        layout.mkdir(parents=True)
        (layout / "instances.json").write_text(json.dumps(instances))
        (layout / "refs(shapes).p").write_bytes(pickle.dumps(refs, protocol=2))
        write_json(partial / STAMP, {"variant": variant, "n_images": dict(n_images), "seed": seed})
        fsync_tree(partial)
        replace_folder(folder, partial)


def remove_leftovers(folder: Path) -> None:
    """Clear up after a `generate` that was killed: `folder` is what it was before, or whole and new."""
    lock = _lock_of(folder)
    if lock.exists():
        with suppress(RisError), hold(lock):  # not what a living process holds
            restore_folder(folder)
            shutil.rmtree(folder.with_name(f"{folder.name}.partial"), ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _draw(
    items: Sequence[Item], folder: Path, workers: int, advance: Callable[[int], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw and write the pictures; return the contents of instances.json and the refs."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    sent_ids = count(0)
    with closing(map_processes(_save_item, ((item, folder) for item in items), workers)) as drawn:
        for item, (image, records) in zip(items, drawn, strict=True):
            images.append(image)
            for record in records:
                ann_id = len(annotations) + 1
                ref_sent_ids = [next(sent_ids) for _ in record["sentences"]]
                sentences = [
                    {"sent_id": sent_id, "sent": sent, "raw": sent, "tokens": sent.split()}
                    for sent_id, sent in zip(ref_sent_ids, record.pop("sentences"), strict=True)
                ]
                annotations.append({"id": ann_id, "image_id": item.image_id, "iscrowd": 0, **record})
                refs.append(
                    {
                        "ref_id": ann_id - 1,
                        "ann_id": ann_id,
                        "image_id": item.image_id,
                        "category_id": record["category_id"],
                        "split": item.split,
                        "file_name": f"{item.image_id:06d}_{ann_id}.jpg",
                        "sent_ids": ref_sent_ids,
                        "sentences": sentences,
                    }
                )
            advance(1)
    categories = [{"id": i + 1, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES)]
    return {"images": images, "annotations": annotations, "categories": categories}, refs
