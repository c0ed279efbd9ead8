"""A generated data set of RefCOCO's size."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

N_IMAGES, N_REFS, N_SENTENCES, N_PER_IMAGE = 20_000, 50_000, 142_000, 10  # objects; RefCOCO: 197,000 on 19,994 images
WORDS = ["man", "woman", "dog", "left", "right", "red", "shirt", "front", "second", "table", "near", "the", "in", "hat"]


def write_refcoco(root: Path, shares: Mapping[str, float] = MappingProxyType({"train": 1})) -> None:
    """Write files of RefCOCO's size: random polygons of 8 to 60 corners; `shares`: of the refs, by split."""
    rng = np.random.default_rng(0)
    folder = root / "refer" / "refcoco"
    folder.mkdir(parents=True)
    (root / "train2014").mkdir()
    images, annotations = [], []
    for image_id in range(1, N_IMAGES + 1):
        name = f"COCO_train2014_{image_id:012}.jpg"
        images.append({"id": image_id, "file_name": name, "height": 480, "width": 640, "license": 1})
        for k in range(N_PER_IMAGE):
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(8, 61)))
            radius = rng.uniform(0.5, 1, len(angles)) * rng.uniform(10, 110)
            x, y = rng.uniform(120, 520) + radius * np.cos(angles), rng.uniform(120, 360) + radius * np.sin(angles)
            polygon = np.stack([x, y], axis=1).round(2)
            left_top, right_bottom = polygon.min(axis=0), polygon.max(axis=0)
            annotations.append({
                "id": image_id * N_PER_IMAGE + k, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": 1.0,
                "bbox": [*left_top.tolist(), *(right_bottom - left_top).round(2).tolist()],
                "segmentation": [polygon.ravel().tolist()],
            })  # fmt: skip
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    splits = [split for split, share in shares.items() for _ in range(round(share * N_REFS))]
    refs, sent_id = [], 0
    for ref_id in range(N_REFS):
        annotation = annotations[ref_id * len(annotations) // N_REFS]
        sentences = []
        for _ in range((ref_id + 1) * N_SENTENCES // N_REFS - ref_id * N_SENTENCES // N_REFS):
            tokens = rng.choice(WORDS, rng.integers(1, 8)).tolist()
            text = " ".join(tokens)
            sentences.append({"tokens": tokens, "raw": text, "sent": text, "sent_id": sent_id})
            sent_id += 1
        refs.append({
            "ref_id": ref_id, "ann_id": annotation["id"], "image_id": annotation["image_id"], "category_id": 1,
            "split": splits[ref_id], "file_name": f"COCO_train2014_{annotation['image_id']:012}_{annotation['id']}.jpg",
            "sent_ids": [sentence["sent_id"] for sentence in sentences], "sentences": sentences,
        })  # fmt: skip
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
