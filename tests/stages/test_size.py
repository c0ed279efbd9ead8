"""`ris status` and `ris report` where nothing has changed, on a data set of RefCOCO's size.

`pytest -s -m slow tests/stages/test_size.py` prints the seconds that docs/benchmarks.md has.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from large import N_IMAGES, write_refcoco
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.layout import WEIGHTS
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.chain.context import Context, open_context
from ris_pipeline.config import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"train": 0.97, "val": 0.01, "testA": 0.01, "testB": 0.01}  # of the refs; scores are made of val, once
N_CALLS = 5


def write_images(folder):
    """One picture under the names of all."""
    first = folder / "COCO_train2014_000000000001.jpg"
    PIL.Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(first)
    for image_id in range(2, N_IMAGES + 1):
        os.link(first, folder / f"COCO_train2014_{image_id:012}.jpg")


def publish_stand_in(context: Context, stage, **what):
    """An artifact that is fresh and holds nothing of use: neither command opens what it holds."""
    request = context.request(stage, context.resolve(CONFIGS[stage], stage), **what)
    with publish(request) as work:
        (work.path / WEIGHTS).write_bytes(bytes(1000))
    return find(request)


def publish_chain(context):
    step1 = publish_stand_in(context, "step1")
    responses = {
        split: publish_stand_in(context, "responses", inputs=[step1], flags={"split": split}) for split in SHARES
    }
    labels = publish_stand_in(context, "pseudolabels", inputs=[responses["train"]], flags={"refine": True})
    publish_stand_in(context, "step2", inputs=[labels], flags={"labels": "pseudo"})


def run(*words):
    """What the command prints, its seconds from start to end, and those of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "stages.cli", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result.stdout + result.stderr, seconds, busy


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_with_nothing_to_do_answer_within_two_seconds(tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    write_refcoco(data, SHARES)
    write_images(data / "train2014")
    (runs / "refcoco").mkdir(parents=True)
    publish_chain(open_context("refcoco", data_root=data, runs=runs, quiet=True))
    places = ("--dataset", "refcoco", "--data-root", data, "--runs", runs)
    run("score", "--stage", "chance", "--split", "val", "--set", "bootstrap=50", *places)
    report = ("report", "--samples", 0, *places)
    run(*report)
    for words, expected in ((("status", *places), "scores/chance-val"), (report, "report: up to date")):
        calls = [run(*words) for _ in range(N_CALLS)]
        elapsed, busy = (statistics.median(column) for column in list(zip(*calls, strict=True))[1:])
        print(f"ris {words[0]}: {elapsed:.2f} s, of the processor {busy:.2f} s")
        assert all(expected in text and "stale" not in text for text, _, _ in calls)
        assert busy < 2  # elapsed counts what else the machine does
