"""Annotation files of the real data sets' size: seconds, memory and the time to look a sample up.

Each is measured in a process of its own, whose peak memory is its own too.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from large import N_IMAGES, N_REFS, N_SENTENCES, write_refcoco

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
    if ref.has_mask:
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


@pytest.mark.slow
def test_annotations_of_refcocos_size(tmp_path):
    write_refcoco(tmp_path)
    found = measure("refcoco", tmp_path, "train")
    assert (found["images"], found["refs"], found["sentences"]) == (N_IMAGES, N_REFS, N_SENTENCES)
    assert found["peak_mb"] < 700  # more with polygons as lists, or the file kept while it is parsed
