import json
import os
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.check import RECORDS, check_dataset
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError

CARD = Card("referit", "referit", "referit", "referit/images", {"train": None, "test": None}, "berkeley")
JSON = {
    "referit_query_train.json": {"12_3": ["left tree", "tree"], "12_10": ["sky"]},
    "referit_query_val.json": {"7_1": ["man"]},
    "referit_query_test.json": {"40689_39": ["water"]},
    "referit_bbox.json": {
        "12_3": [0, 1, 4, 5],
        "12_10": [0, 0, 9, 5],
        "7_1": [1, 1, 2, 2],
        "40689_39": [0, 0, 9, 5],
    },
    "referit_imsize.json": {"12.jpg": [10, 6], "7.jpg": [10, 6], "40689.jpg": [10, 6]},
}


def faults_of(root):
    return [fault.text for fault in check_dataset(CARD, root).faults.get(RECORDS, ())]


@pytest.fixture
def save_json(tmp_path):
    def save(**changes):
        folder = tmp_path / "referit"
        (folder / "images").mkdir(parents=True)
        for name, table in JSON.items():
            stem = name.removesuffix(".json").removeprefix("referit_")
            (folder / name).write_text(json.dumps(changes.get(stem, table)))
        return tmp_path

    return save


def test_json(save_json):
    root = save_json()
    dataset = load_dataset(CARD, root, "train")
    assert dataset.n_expressions == 4
    tree, sky, man = dataset.refs
    assert not tree.has_mask
    assert not sky.has_mask
    assert (tree.ref_id, sky.ref_id, man.ref_id) == (1203, 1210, 701)
    assert [(e.sent_id, e.sentence) for e in tree.expressions] == [(120300, "left tree"), (120301, "tree")]
    assert (tree.box_xyxy, tree.edges_xyxy) == ((0, 1, 4, 5), (0, 1, 5, 6))
    assert dataset.images[12].hw == (6, 10)
    assert dataset.images[12].path == root / "referit" / "images" / "12.jpg"
    assert dataset.siblings(tree) == (sky,)
    assert man.split == "val"  # the paper's train holds val too
    (water,) = load_dataset(CARD, root, "test").refs
    assert water.ref_id == 4068939
    assert water.expressions[0].sent_id == 406893900


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_train": {"12_100": ["a"]}}, "ref 12_100: expected <image>_<crop>"),
        ({"query_train": {"../12_1": ["a"]}}, r"ref \.\./12_1: expected <image>_<crop>"),
        ({"query_train": {"12_3": []}}, "ref 12_3: 0 sentences"),
        ({"query_train": {"12_3": "tree"}}, "ref 12_3: expected a list of sentences"),
        ({"query_train": {"12_4": ["a"]}}, r"ref 12_4: referit_bbox\.json has no box"),
        ({"bbox": {"12_3": [0, 1, 40, 5]}}, r"referit_bbox\.json: ref 12_3, image 12\.jpg: the box .* 10×6"),
        ({"imsize": {}}, "ref 12_3: .* no .width, height. of its image"),
        ({"query_val": []}, r"referit_query_val\.json is not a JSON table"),
    ],
)
def test_faulty_json(save_json, changes, message):
    with pytest.raises(RisError, match=message):
        load_dataset(CARD, save_json(**changes), "train")


def test_all_faulty_json_records_are_listed(save_json):
    bbox = {key: box for key, box in JSON["referit_bbox.json"].items() if key != "12_10"}
    root = save_json(
        query_train={"12_3": "no list", "12_10": ["sky"], "12": ["no crop"]}, bbox={**bbox, "40689_39": [0, 0, 99, 5]}
    )
    folder = root / "referit"
    assert faults_of(root) == [
        f"{folder / 'referit_query_train.json'}: ref 12_3: expected a list of sentences",
        f"{folder / 'referit_query_train.json'}: ref 12_10: referit_bbox.json has no box for it",
        f"{folder / 'referit_query_train.json'}: ref 12: expected <image>_<crop>, crop below 100",
        f"{folder / 'referit_bbox.json'}: ref 40689_39, image 40689.jpg: the box [0, 0, 99, 5] lies outside the image "
        "of 10×6 pixels",
    ]


def make_rle(*pixels):
    mask = np.zeros((6, 10), np.uint8, order="F")
    for y, x in pixels:
        mask[y, x] = 1
    return coco_mask.encode(mask)


def annotate(query, box, rles, **more):
    return {"image_id": 12, "query": query, "bbox": [box], "segmentation": rles, "category": {3}, **more}


@pytest.fixture
def save_pickle(tmp_path):
    def save(annotations, name="12"):
        folder = tmp_path / "referit" / "annotations"
        folder.mkdir(parents=True)
        (tmp_path / "referit" / "images").mkdir()
        table = {name: {"size": (6, 10, 3), "annotations": annotations}, "99": {"annotations": []}}
        (folder / "train.pickle").write_bytes(pickle.dumps(table, 2))
        (folder / "test.pickle").write_bytes(pickle.dumps({}, 4))
        return tmp_path

    return save


TWO_PARTS = [make_rle((0, 0)), make_rle((5, 9))]


@pytest.mark.parametrize("ref_ids", [(None, None, None), (70, 71, 70)])
def test_pickle(save_pickle, ref_ids):
    boxes = [0, 0, 9, 5], [1, 1, 2, 2], [0, 0, 9, 5]
    rles = TWO_PARTS, [make_rle((1, 1))], TWO_PARTS
    more = [{} if ref_id is None else {"ref_id": ref_id} for ref_id in ref_ids]
    annotations = [
        annotate(query, box, rle, **extra)
        for query, box, rle, extra in zip(("all", "dot", "the lot"), boxes, rles, more, strict=True)
    ]
    root = save_pickle(annotations)
    dataset = load_dataset(CARD, root, "train")
    assert list(dataset.images) == [12]
    assert dataset.images[12].hw == (6, 10)
    assert dataset.images[12].path == root / "referit" / "images" / "12.jpg"
    everything, dot = dataset.refs
    assert [(e.sent_id, e.sentence) for e in everything.expressions] == [(120000, "all"), (120001, "the lot")]
    assert (dot.ref_id, dot.box_xyxy) == (1201, (1, 1, 2, 2))
    assert np.argwhere(dataset.load_mask(everything)).tolist() == [[0, 0], [5, 9]]
    assert np.argwhere(dataset.load_mask(dot)).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("annotations", "name", "message"),
    [
        ([annotate(["a"], [0, 0, 1, 1], TWO_PARTS)], "12", "object 0: expected a list of sentences"),
        ([annotate("a", [0, 0, 11.5, 1], TWO_PARTS)], "12", r"train\.pickle: image 12: object 0: the box"),
        ([annotate("a", [0, 0, 1, 1], TWO_PARTS) | {"bbox": []}], "12", "object 0 must have one box"),
        (["a"], "12", "image 12: expected a list of annotations"),
        ([], "../12", r"image \.\./12: expected a number"),
    ],
)
def test_faulty_pickles(save_pickle, annotations, name, message):
    with pytest.raises(RisError, match=message):
        load_dataset(CARD, save_pickle(annotations, name), "train")


def test_all_faulty_pickled_records_are_listed(save_pickle):
    annotations = [
        annotate(["a"], [0, 0, 1, 1], TWO_PARTS),
        annotate("good", [0, 0, 9, 5], TWO_PARTS),
        annotate("b", [0, 0, 11.5, 1], TWO_PARTS),
        annotate("c", [0, 0, 3, 3], TWO_PARTS) | {"bbox": []},
    ]
    root = save_pickle(annotations)
    train = root / "referit" / "annotations" / "train.pickle"
    (root / "referit" / "annotations" / "test.pickle").write_bytes(pickle.dumps({"../7": {}}, 2))
    sentence, box, no_box, name = faults_of(root)
    assert sentence == f"{train}: image 12: object 0: expected a list of sentences"
    assert box.startswith(f"{train}: image 12: object 2: the box [0, 0, 11.5, 1] lies outside the image")
    assert no_box == f"{train}: image 12: object 3 must have one box [[x1, y1, x2, y2]], not []"
    assert name == f"{train.with_name('test.pickle')}: image ../7: expected a number and its annotations"


def test_missing_files_name_both_forms(tmp_path):
    with pytest.raises(RisError) as caught:
        load_dataset(CARD, tmp_path, "train")
    message = str(caught.value)
    for name in [*JSON, "images", "train.pickle", "test.pickle"]:
        assert name in message
    assert "\n" not in message


class Bomb:
    """Makes a folder when unpickled by an ordinary loader."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("place", ["table", "annotation", "query", "segmentation"])
def test_a_planted_payload_does_not_run(save_pickle, place, tmp_path):
    bomb = Bomb(tmp_path / "trace")
    annotation = annotate("a", [0, 0, 1, 1], TWO_PARTS)
    if place in ("query", "segmentation"):
        annotation[place] = bomb
    root = save_pickle([bomb if place == "annotation" else annotation])
    file = root / "referit" / "annotations" / "train.pickle"
    if place == "table":
        file.write_bytes(pickle.dumps(bomb, 2))
    with pytest.raises(RisError, match=r"train\.pickle is refused and nothing of it was executed: it names .*mkdir"):
        load_dataset(CARD, root, "train")
    assert not (tmp_path / "trace").exists()
    pickle.loads(file.read_bytes())  # an ordinary loader would have run it
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_pickle_is_named(save_pickle, share):
    root = save_pickle([annotate("a", [0, 0, 1, 1], TWO_PARTS)])
    file = root / "referit" / "annotations" / "train.pickle"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RisError, match=r"train\.pickle is (empty|not a readable pickle .*); fetch it again"):
        load_dataset(CARD, root, "train")
