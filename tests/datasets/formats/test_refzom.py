"""Ref-ZOM in its layout: refs(final).p with a number or a list in ann_id and a source, images in two folders."""

import json
import pickle

import pytest

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.load import load_dataset

TRAIN, VAL = "COCO_train2014_000000000005.jpg", "COCO_val2014_000000000006.jpg"
INSTANCES = {
    "images": [
        {"id": 5, "file_name": TRAIN, "height": 10, "width": 20},
        {"id": 6, "file_name": VAL, "height": 10, "width": 20},
    ],
    "annotations": [
        {"id": 50, "image_id": 5, "category_id": 1, "bbox": [2, 3, 4, 5], "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]]},
        {"id": 60, "image_id": 6, "category_id": 1, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
        {"id": 61, "image_id": 6, "category_id": 1, "bbox": [8, 0, 2, 2], "segmentation": [[8, 0, 10, 0, 10, 2, 8, 2]]},
    ],
    "categories": [{"id": 1, "name": "person"}],
}


def make_ref(ref_id, image_id, ann_id, source, sentence):
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "ann_id": ann_id,
        "category_id": 1,
        "split": "test",
        "source": source,
        "sent_ids": [10 * ref_id],
        "sentences": [{"sent_id": 10 * ref_id, "sent": sentence, "raw": sentence, "tokens": sentence.split()}],
    }


REFS = [
    make_ref(1, 5, 50, "one", "a man on the left"),
    make_ref(2, 6, [60, 61], "many", "two people"),
    make_ref(3, 5, 50, "zero", "a zebra"),
]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "refer" / "ref-zom"
    folder.mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    (folder / "refs(final).p").write_bytes(pickle.dumps(REFS))
    return tmp_path


def test_zero_one_and_many(root):
    dataset = load_dataset(load_card("ref-zom"), root, "test")
    one, many, zero = dataset.refs
    assert [len(ref.annotations) for ref in dataset.refs] == [1, 2, 0]
    assert [int(dataset.load_mask(ref).sum()) for ref in (one, many, zero)] == [20, 8, 0]
    assert many.boxes_xyxy == ((0, 0, 2, 2), (8, 0, 10, 2))


def test_the_name_of_the_release(root):
    folder = root / "refer" / "ref-zom"
    (folder / "refs(final).p").rename(folder / "Ref-ZOM(final).p")
    assert len(load_dataset(load_card("ref-zom"), root, "test").refs) == 3


def test_images_are_in_two_folders_or_in_one(root):
    card = load_card("ref-zom")
    images = load_dataset(card, root, "test").images
    assert [image.path for image in images.values()] == [root / "train2014" / TRAIN, root / "val2014" / VAL]
    (root / "trainval2014").mkdir()
    images = load_dataset(card, root, "test").images
    assert [image.path for image in images.values()] == [root / "trainval2014" / name for name in (TRAIN, VAL)]
