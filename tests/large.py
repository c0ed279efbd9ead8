"""A generated data set of RefCOCO's size."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import PIL.Image

N_IMAGES, N_REFS, N_SENTENCES, N_PER_IMAGE = 20_000, 50_000, 142_000, 10  # objects; RefCOCO: 197,000 on 19,994 images
N_POLYGONS = 1_000  # that differ: drawing each anew would take most of a test's time, and reading takes as long
WORDS = ["man", "woman", "dog", "left", "right", "red", "shirt", "front", "second", "table", "near", "the", "in", "hat"]


def write_refcoco(
    root: Path, shares: Mapping[str, float] = MappingProxyType({"train": 1}), hw: tuple[int, int] = (480, 640)
) -> None:
    """Write files of RefCOCO's size: random polygons of 8 to 60 corners; `shares`: of the refs, by split.

    `hw`: of the images, which `write_pictures` makes.
    """
    rng = np.random.default_rng(0)
    folder = root / "refer" / "refcoco"
    folder.mkdir(parents=True)
    (root / "train2014").mkdir()
    images = [
        {"id": k, "file_name": f"COCO_train2014_{k:012}.jpg", "height": hw[0], "width": hw[1], "license": 1}
        for k in range(1, N_IMAGES + 1)
    ]
    objects = [draw_object(rng, hw) for _ in range(N_POLYGONS)]
    n_objects = N_IMAGES * N_PER_IMAGE
    annotations = (
        f'{{"id": {N_PER_IMAGE + k}, "image_id": {k // N_PER_IMAGE + 1}, {objects[k % N_POLYGONS]}}}'
        for k in range(n_objects)
    )
    text = f'{{"images": {json.dumps(images)}, "annotations": [{", ".join(annotations)}], "categories": []}}'
    (folder / "instances.json").write_text(text)
    splits = [split for split, share in shares.items() for _ in range(round(share * N_REFS))]
    lengths = rng.integers(1, 8, N_SENTENCES).tolist()
    words = rng.choice(WORDS, (N_SENTENCES, 7)).tolist()
    refs = []
    for ref_id in range(N_REFS):
        index = ref_id * n_objects // N_REFS
        image_id, ann_id = index // N_PER_IMAGE + 1, N_PER_IMAGE + index
        sent_ids = list(range(ref_id * N_SENTENCES // N_REFS, (ref_id + 1) * N_SENTENCES // N_REFS))
        sentences = [
            {"tokens": tokens, "raw": (text := " ".join(tokens)), "sent": text, "sent_id": k}
            for k in sent_ids
            for tokens in [words[k][: lengths[k]]]
        ]
        refs.append({
            "ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "category_id": 1, "split": splits[ref_id],
            "file_name": f"COCO_train2014_{image_id:012}_{ann_id}.jpg", "sent_ids": sent_ids, "sentences": sentences,
        })  # fmt: skip
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))


def write_pictures(folder: Path, side: int) -> None:
    """Write the images of `write_refcoco`, each of coloured squares of its own."""
    rng = np.random.default_rng(0)
    for k in range(1, N_IMAGES + 1):
        squares = PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        squares.resize((side, side), PIL.Image.Resampling.NEAREST).save(folder / f"COCO_train2014_{k:012}.jpg")


def draw_object(rng: np.random.Generator, hw: tuple[int, int]) -> str:
    """The end of an annotation in JSON, with a box and a polygon of its own, at least a few pixels large."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(8, 61)))
    radius = rng.uniform(0.5, 1, len(angles)) * max(rng.uniform(10, 110) * min(hw[0] / 480, hw[1] / 640), 8)
    x = rng.uniform(120, 520) * hw[1] / 640 + radius * np.cos(angles)
    y = rng.uniform(120, 360) * hw[0] / 480 + radius * np.sin(angles)
    polygon = np.stack([x, y], axis=1).round(2)
    left_top, right_bottom = polygon.min(axis=0), polygon.max(axis=0)
    annotation = {
        "category_id": 1, "iscrowd": 0, "area": 1.0,
        "bbox": [*left_top.tolist(), *(right_bottom - left_top).round(2).tolist()],
        "segmentation": [polygon.ravel().tolist()],
    }  # fmt: skip
    return json.dumps(annotation)[1:-1]
