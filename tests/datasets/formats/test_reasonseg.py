"""ReasonSeg in its layout: name.jpg and name.json, with shapes to find, to ignore and to skip."""

import json

import numpy as np
import PIL.Image
import pytest

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError
from ris_pipeline.scoring.evaluate import evaluate_chance


def shape(label, left, top, right, bottom):
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"label": label, "labels": [label], "shape_type": "polygon", "image_name": "a.jpg", "points": points}


RECORD = {
    "text": ["What tells the time here?", "the clock"],
    "is_sentence": True,
    "shapes": [
        shape("ignore", 4, 0, 6, 2),  # four pixels, of the target's corner
        shape("target", 2, 0, 6, 5),  # twenty pixels
        shape("ignore_2", 10, 0, 20, 10),  # a hundred pixels …
        shape("target", 12, 2, 14, 4),  # … with a target of four on them
        shape("flag", 0, 0, 20, 10),
        {"label": "target", "points": [[0, 0], [1, 1]]},
    ],
}


@pytest.fixture
def save(tmp_path):
    def save(record=RECORD, encoding="utf-8"):
        folder = tmp_path / "reason_seg" / "ReasonSeg" / "val"
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(folder / "a.jpg")
        (folder / "a.json").write_bytes(json.dumps(record, ensure_ascii=False).encode(encoding))
        return tmp_path

    return save


def test_the_smaller_shape_counts_where_shapes_overlap(save):
    root = save()
    dataset = load_dataset(load_card("reasonseg"), root, "val")
    (ref,) = dataset.refs
    assert [e.sentence for e in ref.expressions] == RECORD["text"]
    mask, ignored = dataset.load_mask(ref), dataset.load_ignored(ref)
    assert mask.sum() == 20 - 4 + 4
    assert mask[2:4, 12:14].all()
    assert not mask[0:2, 4:6].any()
    assert ignored.sum() == 4 + 100 - 4
    assert not (mask & ignored).any()
    assert ref.box_xyxy is None
    assert dataset.images[ref.image_id].path == root / "reason_seg" / "ReasonSeg" / "val" / "a.jpg"


def test_ignored_pixels_count_neither_way(save):
    """The whole image as an answer: 20 pixels of the target, and of 200 the 100 that are ignored are no part of it."""
    dataset = load_dataset(load_card("reasonseg"), save(), "val")
    assert [(outcome.intersection, outcome.union) for outcome in evaluate_chance(dataset)] == [(20, 100)] * 2


def test_windows_letters(save):
    dataset = load_dataset(load_card("reasonseg"), save(RECORD | {"text": ["the café’s clock"]}, "cp1252"), "val")
    assert dataset.refs[0].expressions[0].sentence == "the café’s clock"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": []}, "'text' must be a list of sentences"),
        ({"shapes": None}, "'shapes' must be a list of polygons"),
        ({"shapes": [shape("ignore", 0, 0, 5, 5)]}, "no pixel of the object"),
        ({"shapes": [{"label": "target", "points": [[0, 0], [1], [2, 2]]}]}, "must be pairs of numbers"),
    ],
)
def test_faulty_records(save, changes, message):
    with pytest.raises(RisError, match=r"a\.json: .*" + message):
        load_dataset(load_card("reasonseg"), save(RECORD | changes), "val")


def test_a_missing_image_and_missing_folders_are_named(save, tmp_path):
    with pytest.raises(RisError, match=r"reasonseg is not complete: put .*train, .*val, .*test"):
        load_dataset(load_card("reasonseg"), tmp_path, "val")
    root = save()
    (root / "reason_seg" / "ReasonSeg" / "val" / "a.jpg").unlink()
    with pytest.raises(RisError, match=r"a\.jpg is missing"):
        load_dataset(load_card("reasonseg"), root, "val")
