import json
import subprocess
import sys
from dataclasses import replace

import PIL.Image
import pytest

from ris_pipeline.datasets.card import Card, load_card
from ris_pipeline.datasets.load import SplitCheck, check_dataset, load_dataset
from ris_pipeline.errors import RisError

CARD = Card("toy", "pairs", "toy", "toy/images", {"train": 3, "val": 1})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "toy" / "images").mkdir(parents=True)
    lines = [
        {"image": "a.jpg", "ref": "x", "sentence": "one"},
        {"image": "a.jpg", "ref": "y", "sentence": "two"},
        {"image": "b.jpg", "ref": "x", "sentence": "three"},
        {"image": "b.jpg", "ref": "v", "sentence": "four", "split": "val", "mask": "m.png"},
    ]
    (tmp_path / "toy" / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("a.jpg", "b.jpg"):
        PIL.Image.new("RGB", (4, 3)).save(tmp_path / "toy" / "images" / name)
    (tmp_path / "toy" / "m.png").touch()
    return tmp_path


def test_check(root):
    assert check_dataset(CARD, root) == [
        SplitCheck("train", 2, 3, 3, 3, ()),
        SplitCheck("val", 1, 1, 1, 1, ()),
    ]
    assert all(check.ok for check in check_dataset(CARD, root))


def test_check_names_missing_images_and_masks_and_wrong_counts(root):
    image, mask = root / "toy" / "images" / "b.jpg", root / "toy" / "m.png"
    image.unlink()
    mask.unlink()
    train, val = check_dataset(replace(CARD, splits={"train": 4, "val": None}), root)
    assert train == SplitCheck("train", 2, 3, 3, 4, (image,))
    assert val == SplitCheck("val", 1, 1, 1, None, (image, mask))
    mask.touch()
    PIL.Image.new("RGB", (4, 3)).save(image)
    train, val = check_dataset(replace(CARD, splits={"train": 4, "val": None}), root)
    assert not train.ok
    assert val.ok


def test_check_where_nothing_is_there(tmp_path):
    missing = (tmp_path / "toy" / "pairs.jsonl", tmp_path / "toy" / "images")
    assert check_dataset(CARD, tmp_path) == [
        SplitCheck("train", 0, 0, 0, 3, missing),
        SplitCheck("val", 0, 0, 0, 1, missing),
    ]


def test_a_missing_data_set_names_every_file_and_its_place(tmp_path):
    with pytest.raises(RisError) as caught:
        load_dataset(load_card("refcocog@umd"), tmp_path, "val")
    message = str(caught.value)
    for place in ("refer/refcocog/refs(umd).p", "refer/refcocog/instances.json", "train2014"):
        assert str(tmp_path / place) in message
    assert "data/README.md" in message


@pytest.mark.parametrize("name", ["shapes", "shapes+", "shapesg"])
def test_missing_shapes_are_to_be_made(name, tmp_path):
    with pytest.raises(RisError, match="`ris data make-shapes`"):
        load_dataset(load_card(name), tmp_path, "train")


def test_a_split_that_the_card_lacks(tmp_path):
    with pytest.raises(RisError, match="refcocog-google has no split 'test'; refcocog-umd has it; it has train, val"):
        load_dataset(load_card("refcocog@google"), tmp_path, "test")


def test_reading_data_needs_no_torch():
    code = "import sys, ris_pipeline.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
