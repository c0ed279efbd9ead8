import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from ris_pipeline.datasets.card import read_card
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.datasets.own import read_own, read_table, write_own
from ris_pipeline.errors import RisError

SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "val").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "val/c.webp"):
        PIL.Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(folder / name)
    return folder


def load(source, tmp_path, split="train", images=None):
    """The refs of a split after an import: (image, sentences, box, mask's pixels)."""
    folder, records = read_own(source, images)
    card = read_card(write_own(records, folder, "mine", tmp_path / "root"))
    dataset = load_dataset(card, tmp_path / "root", split)
    assert all(image.path.is_file() for image in dataset.images.values())
    return [
        (
            dataset.images[ref.image_id].path.name,
            [expression.sentence for expression in ref.expressions],
            ref.annotations[0].box_xyxy,
            int(dataset.load_mask(ref).sum()) if ref.annotations[0].segmentation is not None else None,
        )
        for ref in dataset.refs
    ]


@pytest.mark.parametrize(
    "text",
    [
        "image,sentence,ref,split\na.jpg,the dog,dog,\na.jpg,brown dog,dog,\nval/c.webp,\"cat, left\",cat,val\n",
        "\ufefffile_name;Caption;ref;split\r\na.jpg;the dog;dog;train\r\na.jpg;brown dog;dog;train\r\n"
        "val/c.webp;cat, left;cat;val\r\n",
        "path\ttext\tobject\tsplit\na.jpg\tthe dog\tdog\ttrain\na.jpg\tbrown dog\tdog\n"
        " val/c.webp\tcat, left\tcat\tval\n",
        '{"image": "a.jpg", "sentence": "the dog", "ref": "dog"}\n\n'
        '{"image": "a.jpg", "text": "brown dog", "ref": "dog"}\n'
        '{"image": "val/c.webp", "sentence": "cat, left", "ref": "cat", "split": "val"}\n',
    ],
    ids=["csv", "csv as of a spreadsheet", "tsv", "jsonl"],
)  # fmt: skip
def test_a_table(photos, tmp_path, text):
    table = photos / "sentences.csv"
    table.write_bytes(text.encode())
    assert load(table, tmp_path) == [("a.jpg", ["the dog", "brown dog"], None, None)]
    assert load(table, tmp_path, "val") == [("c.webp", ["cat, left"], None, None)]


def test_a_table_with_boxes_masks_and_absolute_paths_elsewhere(photos, tmp_path):
    PIL.Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(tmp_path / "m.png")
    rows = [f'{photos}/a.jpg,dog,"[1, 1, 4, 3]"', "b.png,left cat,1 1 4.5 3"]
    (tmp_path / "list.csv").write_text("\n".join(["image,sentence,box", *rows]))
    assert load(tmp_path / "list.csv", tmp_path, images=photos) == [
        ("a.jpg", ["dog"], (1, 1, 4, 3), None),
        ("b.png", ["left cat"], (1, 1, 4.5, 3), None),
    ]
    with pytest.raises(RisError, match=r"photos/a\.jpg is not in .*other; name the images' folder by --images"):
        read_own(tmp_path / "list.csv", tmp_path / "other")


def test_without_refs_each_sentence_is_one(photos, tmp_path):
    (photos / "s.csv").write_text("image,sentence\na.jpg,dog\na.jpg,cat\n")
    assert [sentences for _, sentences, _, _ in load(photos / "s.csv", tmp_path)] == [["dog"], ["cat"]]


def test_a_text_beside_each_image(photos, tmp_path):
    (photos / "a.txt").write_text("the dog\n\n  the 猫 on the left \n", encoding="utf-8")
    (photos / "val" / "c.txt").write_text("a cup")
    (photos / "notes.txt").write_text("of no image")
    assert load(photos, tmp_path) == [("a.jpg", ["the dog"], None, None), ("a.jpg", ["the 猫 on the left"], None, None)]
    assert load(photos, tmp_path, "val") == [("c.webp", ["a cup"], None, None)]


@pytest.mark.parametrize("texts", [{"caption": "the dog"}, {"sentences": [{"sent": "the dog"}]}, {"text": ["the dog"]}])
def test_coco_with_texts(photos, tmp_path, texts):
    content = {
        "images": [{"id": 3, "file_name": "a.jpg", "height": 4, "width": 6}],
        "annotations": [
            {"id": 7, "image_id": 3, "bbox": [1, 1, 3, 2], "segmentation": [SQUARE], **texts},
            {"id": 8, "image_id": 3, "bbox": [0, 0, 1, 1]},
        ],
    }
    (photos / "coco.json").write_text(json.dumps(content))
    assert load(photos / "coco.json", tmp_path) == [("a.jpg", ["the dog"], (1, 1, 4, 3), 6)]


def test_labelme(photos, tmp_path):
    shapes = [
        {"label": "dog", "description": "the dog\ndog on the left", "shape_type": "polygon",
         "points": [[1, 1], [4, 1], [4, 3], [1, 3]]},
        {"label": "cat", "description": "", "shape_type": "rectangle", "points": [[5, 3], [2, 0]]},
    ]  # fmt: skip
    content = {"imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 6, "shapes": shapes}
    (photos / "a.json").write_text(json.dumps(content))
    assert load(photos, tmp_path) == [
        ("a.jpg", ["the dog", "dog on the left"], (1, 1, 4, 3), 6),
        ("a.jpg", ["cat"], (2, 0, 5, 3), None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,comment\na.jpg,x\n", r"its first line must name the columns, sentence among them"),
        ("a.jpg,the dog\n", r"its first line must name the columns, image and sentence"),
        ("image,sentence\na.jpg,x\na.jpg,\n", r"s\.csv:3: there is no sentence"),
        ("image,sentence\na.jpg,dog, left\n", r"s\.csv:2: more cells than columns; put text with ',' in quotes"),
        ("", r"s\.csv has no rows"),
        ('{"image": "a.jpg"}', r"s\.csv:1: there is no sentence"),
        ('{"image": "a.jpg", ', r"s\.csv:1: not valid JSON"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_line(photos, text, message):
    (photos / "s.csv").write_text(text)
    with pytest.raises(RisError, match=message):
        read_own(photos / "s.csv")


def test_what_holds_no_sentence_is_refused(photos, tmp_path):
    with pytest.raises(RisError, match=r"photos has no text files beside its images .*LabelMe"):
        read_own(photos)
    (photos / "coco.json").write_text('{"images": [], "annotations": [{"id": 1, "bbox": [0, 0, 1, 1]}]}')
    with pytest.raises(RisError, match=r"coco\.json has no text on its annotations \(sentence, "):
        read_own(photos / "coco.json")
    (photos / "coco.json").write_text('{"annotations": [{"id": 1, "image_id": 5, "text": "x"}], "images": []}')
    with pytest.raises(RisError, match="annotation 1: its image 5 is not in the file"):
        read_own(photos / "coco.json")
    (photos / "s.csv").write_bytes("image,sentence\na.jpg,café\n".encode("latin-1"))
    with pytest.raises(RisError, match=r"s\.csv is not UTF-8 text"):
        read_own(photos / "s.csv")
    with pytest.raises(RisError, match=r"nowhere: no such file or folder"):
        read_own(tmp_path / "nowhere")


def test_the_standard_input_is_a_table_too(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"image,sentence\na.jpg,dog\n")))
    assert read_table(Path("-")) == [{"image": "a.jpg", "sentence": "dog"}]


def test_images_of_one_name_in_two_folders_are_two(photos, tmp_path):
    for folder in ("one", "two"):
        (photos / folder).mkdir()
        (photos / folder / "img.v2.png").write_bytes((photos / "b.png").read_bytes())
        (photos / folder / "img.v2.txt").write_text("the dog")
    folder, records = read_own(photos)
    card = read_card(write_own(records, folder, "mine", tmp_path / "root"))
    refs = load_dataset(card, tmp_path / "root", "train").refs
    assert len({ref.ref_id for ref in refs}) == len({ref.image_id for ref in refs}) == 2
