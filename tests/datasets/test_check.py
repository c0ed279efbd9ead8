import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.check import (
    COUNTS,
    EMPTY,
    MISSING,
    SplitCheck,
    check_contents,
    check_dataset,
    check_overlap,
    write_exclude,
)
from ris_pipeline.datasets.load import load_dataset, read_exclude
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
    PIL.Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "toy" / "m.png")
    return tmp_path


def test_check(root):
    check = check_dataset(CARD, root)
    assert check.splits == [SplitCheck("train", 2, 3, 3, 3), SplitCheck("val", 1, 1, 1, 1)]
    assert check.faults == {}
    assert check.remarks == {"images in several splits": ["b.jpg"]}


def test_all_files_that_are_missing_or_empty_are_named_at_once(root):
    image, mask = root / "toy" / "images" / "b.jpg", root / "toy" / "m.png"
    image.unlink()
    image.mkdir()
    mask.write_bytes(b"")
    check = check_dataset(replace(CARD, splits={"train": 4, "val": None}), root)
    assert check.splits == [SplitCheck("train", 2, 3, 3, 4), SplitCheck("val", 1, 1, 1, None)]
    assert [fault.text for fault in check.faults[MISSING]] == [f"{image} is a folder"]
    assert [fault.text for fault in check.faults[EMPTY]] == [f"{mask} is empty"]
    assert [fault.text for fault in check.faults[COUNTS]] == [
        "toy train: 3 sentences where the card expects 4; other annotation files?"
    ]


def test_where_nothing_is_there(tmp_path):
    check = check_dataset(CARD, tmp_path)
    assert check.absent == [tmp_path / "toy" / "pairs.jsonl", tmp_path / "toy" / "images"]
    assert check.splits == []


def test_a_data_set_without_refs_is_a_fault(root):
    (root / "toy" / "pairs.jsonl").write_text("\n")
    (fault,) = check_dataset(replace(CARD, splits={"train": None, "val": None}), root).faults[COUNTS]
    assert fault.text == "toy has no refs in any split of its card"


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_deep_check_finds_can_be_left_out(root, workers):
    folder = root / "toy"
    (folder / "images" / "a.jpg").write_bytes((folder / "images" / "a.jpg").read_bytes()[:40])
    PIL.Image.fromarray(np.zeros((3, 4), np.uint8)).save(folder / "m.png")
    check, done = check_dataset(CARD, root), []
    check_contents(check, folder / "images", workers, done.append)
    assert sum(done) == 2
    (image,), (mask,) = check.faults["images that cannot be used"], check.faults["masks that cannot be used"]
    assert "a.jpg is not a readable picture" in image.text
    assert "'v' of b.jpg" in mask.text  # not only its number
    assert mask.text.endswith("its mask is empty")

    assert write_exclude(root / "bad.txt", check, ["old.jpg"]) == 3
    card = replace(CARD, exclude=Path("bad.txt"))
    names = read_exclude(root / "bad.txt")
    assert {"a.jpg", "old.jpg"} < names
    train = load_dataset(card, root, "train")
    assert [e.sentence for ref in train.refs for e in ref.expressions] == ["three"]
    assert [image.path.name for image in train.images.values()] == ["b.jpg"]
    assert train.remarks == ("toy: 2 records are left out, as bad.txt says",)
    assert check_dataset(card, root).splits[0].ok
    with pytest.raises(RisError, match="toy has no refs in the split 'val'"):
        load_dataset(card, root, "val")


def test_a_faulty_record_can_be_left_out_by_its_id(root):
    path = root / "toy" / "pairs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["box"] = [0, 0, 0, 0]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(RisError, match=r"pairs.jsonl:4: ref 'v'.*: its box .* has no area; .*--write-exclude"):
        load_dataset(CARD, root, "val")
    write_exclude(root / "bad.txt", check_dataset(CARD, root), ())
    check = check_dataset(replace(CARD, exclude=Path("bad.txt")), root)
    assert [split.n_expressions for split in check.splits] == [3, 0]
    assert check.faults == {}


def test_sentences_that_several_refs_of_an_image_share_are_told(root):
    path = root / "toy" / "pairs.jsonl"
    lines = path.read_text().replace('"two"', '"One "').replace('"three"', '"one"')
    again = {"image": "a.jpg", "ref": "x", "sentence": "one"}  # of the same ref: no other object is meant
    path.write_text(f"{lines}\n{json.dumps(again)}")
    check = check_dataset(replace(CARD, splits={"train": 4, "val": 1}), root)
    assert check.remarks["sentences that are said of several refs of their image"] == ["'one' of a.jpg"]


def test_sentences_of_another_script_are_told(root):
    path = root / "toy" / "pairs.jsonl"
    path.write_text(path.read_text().replace('"two"', '"左边的狗"').replace('"three"', '"façade № 1, naïve 🐶"'))
    remarks = check_dataset(CARD, root).remarks
    assert remarks["sentences in another script than Latin, which OpenAI's CLIP does not know"] == ["左边的狗"]


def test_refs_that_are_in_two_splits_are_told(tmp_path):
    """REFER marks a ref testAB, or a file is put together from two: the same object is learnt and scored."""
    refs = [
        {"ref_id": 7, "ann_id": 1, "image_id": 5, "split": "testAB", "sentences": [{"sent_id": 1, "sent": "cup"}]},
        {"ref_id": 8, "ann_id": 1, "image_id": 5, "split": "testA", "sentences": [{"sent_id": 2, "sent": "red cup"}]},
    ]
    instances = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 3, "width": 4}],
        "annotations": [{"id": 1, "image_id": 5, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}],
    }
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    check = check_dataset(Card("two", "refer", ".", ".", {"testA": None, "testB": None}, "unc"), tmp_path)
    assert check.remarks["refs in several splits"] == ["7"]
    assert check.remarks["images in several splits"] == ["a.jpg"]


def test_images_that_a_list_names_are_counted_in_each_split(root):
    (root / "pretrained.txt").write_text("b\nelsewhere.jpg\n")
    check = check_dataset(CARD, root)
    check_overlap(check, root / "pretrained.txt")
    assert check.remarks["1 of 2 images of train are in pretrained.txt"] == ["b.jpg"]
    assert check.remarks["1 of 1 images of val are in pretrained.txt"] == ["b.jpg"]


@pytest.mark.parametrize(("holes", "is_expected"), [(0, False), (1, True), (2, True)])
def test_images_that_no_source_has_are_told_as_such(root, holes, is_expected):
    (root / "toy" / "images" / "a.jpg").unlink()
    check = check_dataset(replace(CARD, holes=holes), root)
    assert len(check.faults[MISSING]) == 1  # a stage cannot use it either way
    told = [remark for remark in check.remarks if remark.startswith(f"no source has {holes} of the images")]
    assert bool(told) == is_expected


def test_a_missing_exclude_list_is_named(root):
    with pytest.raises(RisError, match=r"nowhere\.txt"):
        load_dataset(replace(CARD, exclude=Path("nowhere.txt")), root, "train")
