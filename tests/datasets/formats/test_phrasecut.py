"""VGPhraseCut in its layout: refer_<split>.json with several instances, each of several polygons."""

import json

import pytest

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import EmptySplitError, RisError

IMAGES = [{"image_id": 2318488, "width": 20, "height": 10, "split": "miniv", "coco_id": None, "flickr_id": 1}]
LEFT = [[[2, 3], [6, 3], [6, 8], [2, 8]]]  # 20 pixels
RIGHT = [[[10, 0], [14, 0], [14, 2], [10, 2]], [[16, 4], [18, 4], [18, 6], [16, 6]], [[0, 0], [1, 1]]]  # 8 and 4
TASK = {
    "task_id": "2318488__1",
    "image_id": 2318488,
    "ann_ids": [1, 2],
    "instance_boxes": [[2, 3, 5, 6], [10, 0, 9, 7]],
    "Polygons": [LEFT, RIGHT],
    "phrase": "white dogs",
    "phrase_structure": {"name": "dogs", "attributes": ["white"], "relation_ids": [], "relation_descriptions": []},
}


@pytest.fixture
def save(tmp_path):
    def save(*tasks):
        folder = tmp_path / "VGPhraseCut_v0"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "image_data_split.json").write_text(json.dumps(IMAGES))
        (folder / "refer_miniv.json").write_text(json.dumps(tasks))
        return tmp_path

    return save


def test_a_phrase_about_several_instances(save):
    other = TASK | {"task_id": "2318488__2", "Polygons": [LEFT], "phrase": "dog on left"}
    root = save(TASK, other)
    dataset = load_dataset(load_card("phrasecut"), root, "miniv")
    dogs, dog = dataset.refs
    assert ([e.sentence for e in dogs.expressions], dogs.label) == (["white dogs"], "2318488__1")
    assert dogs.boxes_xyxy == ((2, 3, 6, 8), (10, 0, 18, 6))
    mask = dataset.load_mask(dogs)
    assert mask.sum() == 20 + 8 + 4
    assert mask[4:6, 16:18].all()
    assert dataset.load_mask(dog).sum() == 20
    assert dataset.images[2318488].path == root / "VGPhraseCut_v0" / "images" / "2318488.jpg"


def test_a_split_that_was_not_downloaded_is_empty(save):
    with pytest.raises(EmptySplitError, match="phrasecut has no refs in the split 'train'"):
        load_dataset(load_card("phrasecut"), save(TASK), "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 5}, "task 2318488__1: its image 5 is not in image_data_split.json"),
        ({"phrase": " "}, "task 2318488__1.*sentence .* is empty"),
        ({"Polygons": [[[[0, 0], [1, 1]]]]}, "none of its polygons has three corners"),
        ({"Polygons": [[[[0, 0], ["a", 1], [3, 3]]]]}, "bad segmentation: a polygon must be a list of x, y pairs"),
        ({"Polygons": [5]}, "bad segmentation: expected polygons"),
        ({"Polygons": None}, "it must have a task_id and a phrase, as text, and a list of Polygons"),
    ],
)
def test_faulty_tasks(save, changes, message):
    with pytest.raises(RisError, match=r"refer_miniv\.json: .*" + message):
        load_dataset(load_card("phrasecut"), save(TASK | changes), "miniv")
