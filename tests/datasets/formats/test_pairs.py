import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.check import RECORDS, check_dataset
from ris_pipeline.datasets.io.images import load_image
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError

CARD = Card("pairs", "pairs", "pairs", "pairs/images", {"train": None, "val": None})
DOG = {"image": "yard/a.jpg", "ref": "dog", "sentence": "brown dog"}
LINES = [
    DOG,
    {**DOG, "ref": "cat", "sentence": "cat"},
    {**DOG, "sentence": "dog by the fence", "split": "train"},
    {**DOG, "image": "b.jpg", "sentence": "dog", "split": "val", "box": [1, 2, 3, 4], "mask": "masks/b.png"},
]


def faults_of(root):
    return [fault.text for fault in check_dataset(CARD, root).faults.get(RECORDS, ())]


@pytest.fixture
def save(tmp_path):
    def save(*lines):
        (tmp_path / "pairs" / "images").mkdir(parents=True, exist_ok=True)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "pairs" / "pairs.jsonl").write_text("\n".join(texts) + "\n")
        return tmp_path

    return save


def test_sentences_are_gathered_by_ref(save):
    root = save(*LINES[:2], "", *LINES[2:])
    dataset = load_dataset(CARD, root, "train")
    dog, cat = dataset.refs
    assert [e.sentence for e in dog.expressions] == ["brown dog", "dog by the fence"]
    assert dataset.siblings(dog) == (cat,)
    (image,) = dataset.images.values()
    assert image.path == root / "pairs" / "images" / "yard" / "a.jpg"
    assert image.hw is None
    assert cat.box_xyxy is None
    assert not cat.has_mask


def test_boxes_and_masks(save):
    root = save(*LINES)
    dataset = load_dataset(CARD, root, "val")
    (dog,) = dataset.refs
    assert dog.box_xyxy == (1, 2, 3, 4)
    (root / "pairs" / "masks").mkdir()
    PIL.Image.fromarray(np.array([[0, 9]], np.uint8)).save(root / "pairs" / "masks" / "b.png")
    assert dataset.load_mask(dog).tolist() == [[False, True]]


def test_photographs_are_turned_unless_the_card_says_otherwise(save):
    root = save({**DOG, "image": "b.jpg", "box": [0, 0, 2, 5]})
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    PIL.Image.new("RGB", (5, 2)).save(root / "pairs" / "images" / "b.jpg", exif=exif)
    (image,) = load_dataset(CARD, root, "train").images.values()
    assert (image.hw, load_image(image).shape) == ((5, 2), (5, 2, 3))
    stored = replace(CARD, raw_orientation=True)
    with pytest.raises(RisError, match="box"):
        load_dataset(stored, root, "train")
    save({**DOG, "image": "b.jpg", "box": [0, 0, 5, 2]})
    (image,) = load_dataset(stored, root, "train").images.values()
    assert (image.hw, load_image(image).shape) == ((2, 5), (2, 5, 3))


def test_ids_do_not_depend_on_the_order(save):
    before = load_dataset(CARD, save(*LINES), "train")
    after = load_dataset(CARD, save(LINES[3], LINES[2], LINES[1], {**DOG, "ref": "new"}, LINES[0]), "train")
    ids = {e.sentence: (r.image_id, r.ref_id, e.sent_id) for r in before.refs for e in r.expressions}
    again = {
        e.sentence: (r.image_id, r.ref_id, e.sent_id)
        for r in after.refs
        for e in r.expressions
        if r.ref_id in {ref.ref_id for ref in before.refs}
    }
    assert ids == again
    assert all(0 <= i < 2**52 for triple in ids.values() for i in triple)


def test_a_sentence_may_be_repeated(save):
    (dog,) = load_dataset(CARD, save(DOG, DOG), "train").refs
    assert len({e.sent_id for e in dog.expressions}) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected"),
        ({**DOG, "sentense": "x"}, "unknown key 'sentense'; did you mean 'sentence'"),
        ({"image": "a.jpg", "ref": "x"}, "'sentence' must be given"),
        ({**DOG, "sentence": "  "}, "'sentence' must be given"),
        ({**DOG, "image": 3}, "'image' must be given, as text"),
        ({**DOG, "image": "../a.jpg"}, "leads out"),
        ({**DOG, "ref": "y", "mask": "/m.png"}, "leads out"),
        ({**DOG, "ref": "y", "box": [0, 0, 1]}, "ref 'y', image yard/a.jpg: the box must be four numbers"),
        ({**DOG, "ref": "y", "box": [-9, 0, 1, 1]}, "outside the image"),
        ({**DOG, "split": "tset"}, "no split 'tset', only train, val"),
        ({**DOG, "split": "val"}, "split differs from the first line of ref 'dog'"),
        ({**DOG, "box": [0, 0, 1, 1]}, "box differs from the first line"),
    ],
)
def test_faulty_lines_are_named(save, line, message):
    with pytest.raises(RisError, match=r"pairs\.jsonl:2: .*" + message):
        load_dataset(CARD, save(DOG, line), "train")


def test_a_file_that_is_not_utf8(save):
    root = save(DOG)
    with (root / "pairs" / "pairs.jsonl").open("ab") as file:
        file.write(b'{"image": "\xff.jpg"}\n')
    with pytest.raises(RisError, match=r"pairs\.jsonl:2: not valid JSON"):
        load_dataset(CARD, root, "train")


def test_boxes_and_masks_have_to_fit_their_image(save):
    root = save(*LINES)
    (root / "pairs" / "masks").mkdir()
    PIL.Image.new("RGB", (4, 5)).save(root / "pairs" / "images" / "b.jpg")
    PIL.Image.new("L", (5, 4)).save(root / "pairs" / "masks" / "b.png")
    dataset = load_dataset(CARD, root, "val")
    (dog,) = dataset.refs
    assert dataset.images[dog.image_id].hw == (5, 4)
    with pytest.raises(RisError, match=r"image b\.jpg: bad segmentation: .* has 5×4 pixels, the image has 4×5"):
        dataset.load_mask(dog)
    save({**LINES[3], "box": [0, 0, 4, 7]})
    with pytest.raises(RisError, match=r"pairs\.jsonl:1: ref 'dog', image b\.jpg: .* outside the image of 4×5 pixels"):
        load_dataset(CARD, root, "val")


def test_all_faulty_lines_are_listed(save):
    root = save(
        {**DOG, "sentence": ""}, *LINES[:2], "{", {**DOG, "split": "test"}, {**DOG, "box": [4, 2, 3, 4]}, *LINES[2:]
    )
    path = root / "pairs" / "pairs.jsonl"
    empty, json_fault, split, box = faults_of(root)
    assert empty == f"{path}:1: 'sentence' must be given, as text"
    assert json_fault.startswith(f"{path}:4: not valid JSON: ")
    assert split == f"{path}:5: the card pairs has no split 'test', only train, val"
    assert box == f"{path}:6: box differs from the first line of ref 'dog'"
    assert faults_of(save(*LINES)) == []
