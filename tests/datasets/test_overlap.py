import json
from pathlib import Path

import pytest

from ris_pipeline.datasets.overlap import find_listed, key_of, read_image_list
from ris_pipeline.datasets.records import Dataset, Image
from ris_pipeline.errors import RisError


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("COCO_train2014_000000581857.jpg", "581857"),
        ("val2017/000000581857.jpg", "581857"),
        ("581857", "581857"),
        ("COCO_train2014_000000581857_2.jpg", "coco_train2014_000000581857_2"),  # an annotation of it, no image
        ("yard\\Img.V2.JPG", "img.v2"),
        ("img.v2", "img.v2"),
        ("scene-12.png", "scene-12"),
    ],
)
def test_an_image_is_known_by_its_name_or_number(name, key):
    assert key_of(name) == key


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("list.txt", "# of a detector\nCOCO_train2014_000000000009.jpg\n\nb.png\n"),
        ("list.json", json.dumps(["000000000009.jpg", "b.png"])),
        ("ids.json", json.dumps([9, "b"])),
        (
            "coco.json",
            json.dumps({"images": [{"id": 1, "file_name": "000000000009.jpg"}, {"id": 2, "file_name": "b.png"}]}),
        ),
        ("vg.json", json.dumps([{"image_id": 4, "coco_id": 9}, {"image_id": 5, "coco_id": None}, "b"])),
    ],
)  # fmt: skip
def test_lists_in_the_forms_that_people_have(tmp_path, file, content):
    path = tmp_path / file
    path.write_text(content)
    assert read_image_list(path) == {"9", "b"}
    images = {
        n: Image(n, Path("i") / name, None) for n, name in enumerate(["COCO_train2014_000000000009.jpg", "c.png"])
    }
    assert find_listed(Dataset("toy", "val", images, ()), read_image_list(path)) == ["COCO_train2014_000000000009.jpg"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", b"# nothing\n", "lists no image"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read as a list"),
        ("a.json", b'{"images": 3}', "must be a list"),
        ("a.json", b"<html>", "is not annotations but a web page"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, file, content, message):
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(RisError, match=rf"{file}.* {message}"):
        read_image_list(path)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(RisError, match=r"nowhere\.txt"):
        read_image_list(tmp_path / "nowhere.txt")
