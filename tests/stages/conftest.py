"""A data set of two images and three sentences, in the smallest format."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from stages.options import StageOptions

CARD = """
name = "tiny"
format = "pairs"
annotations = "tiny"
images = "tiny/images"
[splits]
train = 2
val = 1
[config.step1]
epochs = 2
"""
LINES = [
    {"image": "a.png", "ref": "dog", "sentence": "the dog", "split": "train"},
    {"image": "a.png", "ref": "dog", "sentence": "dog on the left", "split": "train"},
    {"image": "b.png", "ref": "cat", "sentence": "the cat", "split": "val"},
]


@pytest.fixture
def tiny(tmp_path: Path) -> StageOptions:
    """Options of a stage on that data set."""
    images = tmp_path / "data" / "tiny" / "images"
    images.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(images / name)
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "data" / "tiny" / "pairs.jsonl").write_text(text)
    (tmp_path / "tiny.toml").write_text(CARD)
    return StageOptions(dataset=str(tmp_path / "tiny.toml"), data_root=tmp_path / "data", runs=tmp_path / "runs")
