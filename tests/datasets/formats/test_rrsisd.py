"""RRSIS-D in its layout: run lengths in a list, boxes as corners, ids of categories under another name."""

import json
import pickle

import pytest

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError

# Of 8×10 pixels, down the columns: three whole columns from the third on.
RLE = {"size": [8, 10], "counts": [16, 24, 40]}
REF = {
    "ref_id": 0,
    "ann_id": 0,
    "image_id": 11,
    "category_id": 7,
    "split": "val",
    "file_name": "00011.jpg",
    "sent_ids": [0],
    "sentences": [
        {"sent_id": 0, "sent": "the stadium in the middle", "raw": "The stadium in the middle", "tokens": []}
    ],
}


@pytest.fixture
def save(tmp_path):
    def save(image, segmentation):
        instances = {
            "images": [{"id": 11, "file_name": "00011.jpg", **image}],
            "annotations": [
                {"id": 0, "image_id": 11, "categories_id": 7, "bbox": [2, 0, 4, 7], "segmentation": segmentation}
            ],
            "categories": [{"id": 7, "name": "stadium"}],
        }
        (tmp_path / "rrsisd").mkdir()
        (tmp_path / "images" / "rrsisd" / "JPEGImages").mkdir(parents=True)
        (tmp_path / "rrsisd" / "instances.json").write_text(json.dumps(instances))
        (tmp_path / "rrsisd" / "refs(unc).p").write_bytes(pickle.dumps([REF]))
        return tmp_path

    return save


@pytest.mark.parametrize("image", [{"height": 8, "width": 10}, {}])
def test_masks_without_boxes(save, image):
    dataset = load_dataset(load_card("rrsis-d"), save(image, [RLE]), "val")
    (ref,) = dataset.refs
    mask = dataset.load_mask(ref)
    assert mask.shape == dataset.images[11].hw == (8, 10)
    assert mask[:, 2:5].all()
    assert mask.sum() == 24
    assert ref.box_xyxy is None
    assert dataset.images[11].path.parts[-4:] == ("images", "rrsisd", "JPEGImages", "00011.jpg")


def test_what_the_release_lost_is_told(save):
    dataset = load_dataset(load_card("rrsis-d"), save({}, [RLE]), "val")
    assert "only the last sentence of each image" in dataset.remarks[0]


def test_run_lengths_of_another_size_are_refused(save):
    with pytest.raises(RisError, match=r"ref 0, image 00011\.jpg: bad segmentation: .* 10×8 pixels, the image has 9×8"):
        load_dataset(load_card("rrsis-d"), save({"height": 8, "width": 9}, [RLE]), "val")
