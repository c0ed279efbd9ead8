"""The folder layout of TRIS's README, with tiny annotations: every card of the paper finds its files in it.

data/train2014/                     data/referit/annotations/train.pickle, test.pickle
data/refer/<data set>/refs(…).p     data/referit/images/, data/referit/masks/ (which nothing reads)
data/refer/<data set>/instances.json
"""

import json
import pickle

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.check import check_dataset
from ris_pipeline.datasets.load import load_dataset

SPLITS = {
    "refcoco": ("unc", ("train", "val", "testA", "testB")),
    "refcoco+": ("unc", ("train", "val", "testA", "testB")),
    "refcocog": ("umd", ("train", "val", "test")),
}
RLE = coco_mask.encode(np.asfortranarray(np.eye(6, 8, dtype=np.uint8)))


def write_refs(folder, partition, splits):
    refs = [
        {
            "ref_id": n, "ann_id": n, "image_id": n, "category_id": 1, "split": split,
            "file_name": f"COCO_train2014_{n:012}_{n}.jpg", "sent_ids": [n],
            "sentences": [{"sent_id": n, "sent": f"{partition} {split}", "raw": "", "tokens": []}],
        }
        for n, split in enumerate(splits)
    ]  # fmt: skip
    (folder / f"refs({partition}).p").write_bytes(pickle.dumps(refs, 2))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    images = [{"id": n, "file_name": f"COCO_train2014_{n:012}.jpg", "height": 6, "width": 8} for n in range(4)]
    square = [[1, 1, 4, 1, 4, 4, 1, 4]]
    objects = [{"id": n, "image_id": n, "bbox": [1, 1, 3, 3], "segmentation": square} for n in range(4)]
    for folder in (root / "train2014", root / "referit" / "images", root / "referit" / "masks"):
        folder.mkdir(parents=True)
    for image in images:
        PIL.Image.new("RGB", (8, 6)).save(root / "train2014" / image["file_name"])
    for name, (partition, splits) in SPLITS.items():
        folder = root / "refer" / name
        folder.mkdir(parents=True)
        (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": []}))
        write_refs(folder, partition, splits)
    write_refs(root / "refer" / "refcocog", "google", ("train", "val"))
    (root / "referit" / "annotations").mkdir()
    for n, split in enumerate(("train", "test")):
        annotation = {"image_id": n, "query": f"berkeley {split}", "bbox": [[0, 0, 5, 5]], "segmentation": [RLE]}
        table = {str(n): {"annotations": [annotation]}}
        (root / "referit" / "annotations" / f"{split}.pickle").write_bytes(pickle.dumps(table, 2))
        PIL.Image.new("RGB", (8, 6)).save(root / "referit" / "images" / f"{n}.jpg")
    return root


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog-google", "refcocog-umd", "referit"])
def test_every_split_is_found(name, data):
    card = load_card(name)
    for split in card.splits:
        dataset = load_dataset(card, data, split)
        (sentence,) = (expression.sentence for ref in dataset.refs for expression in ref.expressions)
        assert sentence == f"{card.partition} {split}"
        assert dataset.load_mask(dataset.refs[0]).any()
    check = check_dataset(card, data)
    assert (check.absent, {k: f for k, f in check.faults.items() if "size" not in k}) == ([], {})
