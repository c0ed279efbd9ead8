import json
import os
import shutil
from dataclasses import replace

import PIL.Image
import pytest

from ris_pipeline.datasets import inventory
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.inventory import Inventory
from ris_pipeline.errors import RisError

CARD = Card("toy", "pairs", "toy", "toy/images", {"train": None, "val": None})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "toy" / "images").mkdir(parents=True)
    lines = [
        {"image": "a.png", "ref": "x", "sentence": "one"},
        {"image": "b.png", "ref": "v", "sentence": "two", "split": "val", "mask": "m.png"},
    ]
    (tmp_path / "toy" / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("images/a.png", "images/b.png", "m.png"):
        PIL.Image.new("L", (4, 3), 9).save(tmp_path / "toy" / name)
    return tmp_path


def digests(root):
    (root / "runs").mkdir(exist_ok=True)
    inventory = Inventory(CARD, root, root / "runs" / "data.json")  # as a new command has it
    return [inventory.images(split) for split in ("train", "val")]


def replace_picture(path, level):
    """Another picture; the time of change moves even where the clock of the file system is coarse."""
    before = path.stat().st_mtime_ns
    PIL.Image.new("L", (4, 3), level).save(path)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_digest_follows_the_contents_of_its_split(root):
    train, val = digests(root)
    assert digests(root) == [train, val]
    replace_picture(root / "toy" / "images" / "b.png", 50)
    assert digests(root)[0] == train
    changed = digests(root)[1]
    assert changed != val
    replace_picture(root / "toy" / "m.png", 50)
    assert digests(root)[1] not in (val, changed)
    replace_picture(root / "toy" / "images" / "b.png", 9)
    replace_picture(root / "toy" / "m.png", 9)
    assert digests(root) == [train, val]  # touched, but the same again


def test_sentences_are_asked_about_once(root):
    def ask(sentences, find):
        return Inventory(CARD, root, root / "new" / "data.json").cut(sentences, find)

    assert ask(["one", "two"], lambda: ["two"]) == ["two"]
    assert ask(["one", "two"], pytest.fail) == ["two"]
    broken = "half of a pair \ud800"  # JSON can hold it, UTF-8 cannot
    assert ask(["one", broken], lambda: [broken]) == [broken]
    assert ask(["one", broken], pytest.fail) == [broken]
    assert ask(["one", "three"], list) == []
    assert ask(["one", "three"], pytest.fail) == []
    digests_before = Inventory(CARD, root, root / "new" / "data.json").images("train")
    assert ask(["one", "three"], pytest.fail) == []
    assert Inventory(CARD, root, root / "new" / "data.json").images("train") == digests_before


def test_annotations_are_by_name_and_content(root):
    before = Inventory(CARD, root, root / "data.json").annotations()
    assert list(before) == ["pairs.jsonl"]
    path = root / "toy" / "pairs.jsonl"
    path.write_text(path.read_text().replace("one", "uno "))
    assert Inventory(CARD, root, root / "data.json").annotations() != before


def test_data_read_as_stored_are_other_data(root):
    turned, stored = (
        Inventory(card, root, root / "data.json").annotations() for card in (CARD, replace(CARD, raw_orientation=True))
    )
    assert stored == {**turned, "raw_orientation": "true"}


def test_faulty_annotations_are_told_when_they_are_asked_for(root):
    path = root / "toy" / "pairs.jsonl"
    path.write_text(path.read_text().replace("one", " "))
    with pytest.raises(RisError, match=r"pairs\.jsonl:1"):
        digests(root)


def test_nothing_is_read_twice(root, monkeypatch):
    before = digests(root)
    monkeypatch.setattr(inventory, "_hash_file", None)
    monkeypatch.setattr(inventory, "read_whole", None)
    assert digests(root) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {"a": 1}, "splits": {}}'])
def test_a_damaged_memory_is_made_again(root, content):
    before = digests(root)
    (root / "runs" / "data.json").write_bytes(content)
    assert digests(root) == before


def test_data_may_lie_elsewhere(root, tmp_path_factory):
    before = digests(root)
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(root, copy)
    shutil.rmtree(root / "toy")
    assert digests(copy) == before
    shutil.rmtree(copy / "runs")
    assert digests(copy) == before


def test_an_image_that_is_gone_counts_with_what_it_held(root):
    before = digests(root)
    (root / "toy" / "images" / "a.png").unlink()
    assert digests(root) == before


def test_missing_and_empty_images_are_named(root):
    (root / "toy" / "images" / "a.png").unlink()
    (root / "toy" / "m.png").write_bytes(b"")
    inventory = Inventory(CARD, root, root / "data.json")
    with pytest.raises(RisError, match=r"toy train: 1 of 1 images .*a\.png"):
        inventory.check_files("train")
    with pytest.raises(RisError, match=r"toy val: 1 of 2 images .*m\.png"):
        inventory.check_files("val")
