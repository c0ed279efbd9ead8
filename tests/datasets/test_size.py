"""Annotation files of the real data sets' size: seconds, memory and the time to look a sample up.

Each is measured in a process of its own, whose peak memory is its own too.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SAMPLE = Path(__file__).resolve().parents[2].parent / "shared" / "real-sample"

# Prints what loading a split takes: seconds of the process, its peak memory in MB, the slowest look-up in ms.
MEASURE = """
import json, resource, sys, time
from pathlib import Path

import numpy as np

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.load import load_dataset

def peak_mb():
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at what the parent process held
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

name, root, split = sys.argv[1:]
start = time.process_time()
dataset = load_dataset(load_card(name), Path(root), split)
dataset.siblings(dataset.refs[0])
seconds, peak = time.process_time() - start, peak_mb()
slowest = []
for index in np.random.default_rng(0).integers(len(dataset.refs), size=2000):
    times = []
    for _ in range(3):  # the least of three: another process may interrupt one
        start = time.perf_counter()
        ref = dataset.refs[index]
        sample = dataset.images[ref.image_id], ref.expressions, ref.box_xyxy, dataset.siblings(ref)
        times.append(time.perf_counter() - start)
    slowest.append(1000 * min(times))
masks = []
for ref in dataset.refs[:200]:
    if ref.segmentation is not None:
        start = time.perf_counter()
        assert dataset.load_mask(ref).shape == dataset.images[ref.image_id].hw
        masks.append(1000 * (time.perf_counter() - start))
print(json.dumps({
    "seconds": seconds, "peak_mb": peak, "slowest_ms": max(slowest),
    "mask_ms": float(np.median(masks)) if masks else None,
    "sentences": dataset.n_expressions, "refs": len(dataset.refs), "images": len(dataset.images),
}))
"""


def measure(name: str, root: Path, split: str) -> dict:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, name, str(root), split],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    print(split, result.stdout)  # pytest -s shows the figures
    return json.loads(result.stdout)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real samples are not here")
@pytest.mark.parametrize(("split", "sentences"), [("train", 59_976), ("test", 60_105)])
def test_referit(split, sentences):
    found = measure("referit", SAMPLE, split)
    assert found["sentences"] == sentences
    assert found["peak_mb"] < 1000


N_IMAGES, N_REFS, N_SENTENCES, N_PER_IMAGE = 20_000, 50_000, 142_000, 10  # objects; RefCOCO: 197,000 on 19,994 images
WORDS = ["man", "woman", "dog", "left", "right", "red", "shirt", "front", "second", "table", "near", "the", "in", "hat"]


def write_refer(root: Path) -> None:
    """RefCOCO's two files at RefCOCO's size, all refs in train: random polygons of 8 to 60 corners."""
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
            "split": "train", "file_name": f"COCO_train2014_{annotation['image_id']:012}_{annotation['id']}.jpg",
            "sent_ids": [one["sent_id"] for one in sentences], "sentences": sentences,
        })  # fmt: skip
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))


@pytest.mark.slow
def test_annotations_of_refcocos_size(tmp_path):
    write_refer(tmp_path)
    found = measure("refcoco", tmp_path, "train")
    assert (found["images"], found["refs"], found["sentences"]) == (N_IMAGES, N_REFS, N_SENTENCES)
    assert found["peak_mb"] < 1500
