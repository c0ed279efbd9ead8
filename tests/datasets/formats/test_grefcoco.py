"""gRefCOCO in its layout: grefs(unc).json with lists of annotations, [-1] for none, and refs without sentences."""

import json
import pickle

import pytest

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.check import check_dataset
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError

NAME = "COCO_train2014_000000000005.jpg"
INSTANCES = {
    "info": {},
    "images": [{"id": 5, "file_name": NAME, "height": 10, "width": 20, "license": 1}],
    "annotations": [
        {"id": 50, "image_id": 5, "category_id": 18, "iscrowd": 0, "area": 20.0, "bbox": [2, 3, 4, 5],
         "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]]},
        {"id": 51, "image_id": 5, "category_id": 18, "iscrowd": 0, "area": 8.0, "bbox": [10, 0, 4, 2],
         "segmentation": [[10, 0, 14, 0, 14, 2, 10, 2]]},
        # Two columns of ten pixels, the last of the image.
        {"id": 52, "image_id": 5, "category_id": 18, "iscrowd": 1, "area": 20, "bbox": [18, 0, 2, 10],
         "segmentation": {"size": [10, 20], "counts": [180, 20]}},
    ],
    "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
}  # fmt: skip


def make_ref(ref_id, ann_id, split, *sentences):
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": [-1 if ann_id == [-1] else 18],
        "image_id": 5,
        "file_name": NAME,
        "split": split,
        "sent_ids": [sent_id for sent_id, _ in sentences],
        "sentences": [{"sent_id": i, "sent": s, "raw": s.title(), "tokens": s.split()} for i, s in sentences],
    }


TWO, ONE, NONE = [50, 51], [50], [-1]
REFS = [
    make_ref(1, TWO, "train", (10, "both dogs"), (11, "the dogs")),
    make_ref(2, NONE, "train", (20, "the cat")),
    make_ref(3, ONE, "train", (30, "left dog")),
    make_ref(4, TWO, "val", (40, "two dogs")),
    make_ref(5, NONE, "val", (50, "a horse")),
    make_ref(6, ONE, "val"),  # known of the release: github.com/henghuiding/gRefCOCO/issues/8
    make_ref(7, [51, 52], "testA", (70, "the dogs on the right")),
]


@pytest.fixture
def card():
    return load_card("grefcoco")


@pytest.fixture
def save(tmp_path):
    def save(refs=REFS, *, as_pickle=False):
        folder = tmp_path / "refer" / "grefcoco"
        folder.mkdir(parents=True)
        (tmp_path / "train2014").mkdir()
        (tmp_path / "train2014" / NAME).write_bytes(b"a picture")
        (folder / "instances.json").write_text(json.dumps(INSTANCES))
        if as_pickle:
            (folder / "grefs(unc).p").write_bytes(pickle.dumps(refs))
        else:
            (folder / "grefs(unc).json").write_text(json.dumps(refs))
        return tmp_path

    return save


@pytest.mark.parametrize("as_pickle", [False, True])
def test_sentences_about_several_objects_and_about_none(card, save, as_pickle):
    dataset = load_dataset(card, save(as_pickle=as_pickle), "val")
    two, none = dataset.refs
    assert (two.ref_id, two.exists, none.ref_id, none.exists) == (4, True, 5, False)
    assert two.boxes_xyxy == ((2, 3, 6, 8), (10, 0, 14, 2))
    assert two.box_xyxy == two.edges_xyxy == (2, 0, 14, 8)
    mask = dataset.load_mask(two)
    assert mask.sum() == 20 + 8
    assert mask[3:8, 2:6].all()
    assert mask[0:2, 10:14].all()
    assert none.boxes_xyxy == ()
    assert none.box_xyxy is None
    assert dataset.load_mask(none).shape == (10, 20)
    assert not dataset.load_mask(none).any()
    assert [line.partition(": ")[2] for line in dataset.remarks] == [
        "1 refs without sentences are left out",
        "1 sentences are about nothing in their image: scored, not learnt",
    ]


def test_training_takes_only_what_is_there_and_the_rest_as_counter_examples(card, save):
    dataset = load_dataset(card, save(), "train")
    two, one = dataset.refs
    assert (two.ref_id, one.ref_id) == (1, 3)
    (cat,) = dataset.absent
    assert dataset.siblings(one) == (two, cat)


def test_a_crowd_among_several_is_no_object(card, save):
    """As gRefCOCO's loader has it; a crowd alone is kept."""
    root = save([*REFS, make_ref(8, [52], "testB", (80, "the crowd"))])
    (right,) = load_dataset(card, root, "testA").refs
    assert right.boxes_xyxy == ((10, 0, 14, 2),)
    dataset = load_dataset(card, root, "testB")
    assert dataset.load_mask(dataset.refs[0]).sum() == 20


def test_a_repeated_id_and_a_missing_file_are_told(card, save):
    root = save([*REFS, make_ref(4, ONE, "val", (90, "dog"))])
    with pytest.raises(RisError, match=r"grefs\(unc\)\.json: ref 4: its ref_id 4 occurs twice"):
        load_dataset(card, root, "val")
    check = check_dataset(card, root)
    assert [(split.split, split.n_refs, split.n_expressions) for split in check.splits] == [
        ("train", 3, 4), ("val", 2, 2), ("testA", 1, 1), ("testB", 0, 0),
    ]  # fmt: skip
    (root / "refer" / "grefcoco" / "grefs(unc).json").unlink()
    with pytest.raises(RisError, match=r"put .*grefs\(unc\)\.json in place"):
        load_dataset(card, root, "val")
