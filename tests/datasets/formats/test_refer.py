import copy
import json
import pickle

import pytest

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.formats.refer import is_in_split
from ris_pipeline.datasets.load import find_faulty_records, load_dataset
from ris_pipeline.errors import RisError

INSTANCES = {
    "images": [
        {"id": 5, "file_name": "COCO_train2014_000000000005.jpg", "height": 10, "width": 20},
        {"id": 6, "file_name": "COCO_train2014_000000000006.jpg", "height": 8, "width": 8},
    ],
    "annotations": [
        {"id": 50, "image_id": 5, "bbox": [2, 3, 4.5, 5], "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]]},
        {
            "id": 51,
            "image_id": 5,
            "bbox": [0, 0, 20, 10],
            "segmentation": {"size": [10, 20], "counts": [0, 200]},
        },
        {"id": 60, "image_id": 6, "bbox": [0, 0, 8, 8], "segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]]},
    ],
    "categories": [],
}


def make_ref(ref_id, image_id, ann_id, split, sentences):
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012}_{ann_id}.jpg",
        "sent_ids": list(sentences),
        "sentences": [{"sent_id": i, "sent": s, "raw": s.upper(), "tokens": s.split()} for i, s in sentences.items()],
    }


REFS = [
    make_ref(1, 5, 50, "train", {10: "red cup", 11: "cup on the left"}),
    make_ref(2, 6, 60, "val", {20: "dog"}),
    make_ref(3, 5, 51, "train", {30: "table"}),
]
CARD = Card("toy", "refer", "refer/toy", "train2014", {"train": 3, "val": 1, "testA": None}, "unc")


@pytest.fixture
def save(tmp_path):
    def save(refs=REFS, instances=INSTANCES, protocol=2):
        folder = tmp_path / "refer" / "toy"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train2014").mkdir(exist_ok=True)
        (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
        (folder / "instances.json").write_text(json.dumps(instances))
        return tmp_path

    return save


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_one_split(save, protocol):
    root = save(protocol=protocol)
    dataset = load_dataset(CARD, root, "train")
    assert [ref.ref_id for ref in dataset.refs] == [1, 3]
    assert dataset.n_expressions == 3
    assert list(dataset.images) == [5]
    image = dataset.images[5]
    assert image.path == root / "train2014" / "COCO_train2014_000000000005.jpg"
    assert image.hw == (10, 20)
    first, second = dataset.refs
    assert first.box_xyxy == (2, 3, 6.5, 8)
    assert [(e.sent_id, e.sentence) for e in first.expressions] == [(10, "red cup"), (11, "cup on the left")]
    assert dataset.siblings(first) == (second,)
    mask = dataset.load_mask(first)
    assert mask.shape == (10, 20)
    assert mask[3:8, 2:6].all()
    assert mask.sum() == 20
    assert dataset.load_mask(second).all()


@pytest.mark.parametrize(
    ("ref_split", "splits"),
    [
        ("train", {"train"}),
        ("val", {"val"}),
        ("test", {"test"}),
        ("testA", {"testA", "test"}),
        ("testB", {"testB", "test"}),
        ("testAB", {"testA", "testB", "test"}),
        ("testC", {"test"}),
    ],
)
def test_split_names(ref_split, splits):
    assert {s for s in ("train", "val", "testA", "testB", "test") if is_in_split(ref_split, s)} == splits


def test_an_empty_split_is_an_error(save):
    with pytest.raises(RisError, match="toy has no refs in the split 'testA'"):
        load_dataset(CARD, save(), "testA")


def change_refs(**changes):
    refs = copy.deepcopy(REFS)
    refs[0] |= changes
    return {"refs": refs}


def change_instances(kind, **changes):
    instances = copy.deepcopy(INSTANCES)
    instances[kind][0] |= changes
    return {"instances": instances}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (change_refs(sentences=[]), r"refs\(unc\)\.p: ref 1: its list of sentences is empty"),
        (change_refs(sentences=[{"sent_id": 1}]), "ref 1: 'sent' must be of type str"),
        (change_refs(sentences=["red cup"]), "ref 1: 'sent_id' must be of type int"),
        (change_refs(ann_id=99), "ref 1: its annotation 99 is not in"),
        (change_refs(ann_id=60), "ref 1: its annotation belongs to image 6, not 5"),
        (change_refs(image_id=99), "ref 1: its image 99 is not in .*instances.json"),
        (change_refs(image_id=True), "ref 1: 'image_id' must be of type int, not bool"),
        (change_refs(split=None), "ref 1: 'split' must be of type str"),
        (change_refs(ref_id=3), "ref_id 3 occurs twice"),
        (change_refs(ref_id="1"), "ref 1: 'ref_id' must be of type int, not str"),
        ({"refs": {"a": 1}}, "is not a list of refs"),
        ({"refs": [1]}, "is not a list of refs"),
        (change_instances("images", file_name="../../a.jpg"), "image 5: the file name .* leads out"),
        (change_instances("images", file_name="/etc/passwd"), "image 5: the file name .* leads out"),
        (change_instances("images", height=None), "image 5: its size must be whole numbers"),
        (
            change_instances("annotations", bbox=[2, 3, 40, 5]),
            r"refs\(unc\)\.p: ref 1, image COCO_train2014_000000000005\.jpg: .* outside the image of 20×10",
        ),
        (change_instances("annotations", bbox=None), "ref 1, image .*: the box must be four numbers"),
        ({"instances": {"images": []}}, "lacks 'images' or 'annotations'"),
        ({"instances": []}, "lacks 'images' or 'annotations'"),
    ],
)
def test_faulty_records(save, content, message):
    with pytest.raises(RisError, match=message):
        load_dataset(CARD, save(**content), "train")


def test_faults_of_other_splits_do_not_matter(save):
    refs = [*REFS[:2], REFS[2] | {"split": "val", "sentences": []}]
    assert load_dataset(CARD, save(refs), "train").n_expressions == 2


def test_objects_of_the_same_kind_are_counted_in_the_image(save):
    instances = copy.deepcopy(INSTANCES)
    for annotation, category in zip(instances["annotations"], (1, 1, 1), strict=True):
        annotation["category_id"] = category
    instances["annotations"].append({"id": 52, "image_id": 5, "bbox": [0, 0, 1, 1], "category_id": 2})
    # Two of kind 1 in image 5; the one in image 6 and the one of kind 2 are others.
    dataset = load_dataset(CARD, save(instances=instances), "train")
    assert [ref.n_same_kind for ref in dataset.refs] == [2, 2]
    assert [ref.n_same_kind for ref in load_dataset(CARD, save(), "train").refs] == [None, None]


def test_all_faulty_records_are_listed(save):
    refs = [
        make_ref(1, 5, 50, "train", {10: "red cup"}),
        make_ref(2, 6, 999, "val", {20: "dog"}),
        make_ref(3, 5, 51, "train", {}),
        make_ref(4, 7, 50, "train", {40: "no image"}),
        make_ref(5, 5, 51, 3, {50: "of no split"}),
    ]
    root = save(refs)
    path = root / "refer" / "toy" / "refs(unc).p"
    assert sorted(find_faulty_records(CARD, root)) == [
        f"{path}: ref 2: its annotation 999 is not in instances.json",
        f"{path}: ref 3: its list of sentences is empty",
        f"{path}: ref 4: its image 7 is not in {root / 'refer' / 'toy' / 'instances.json'}",
        f"{path}: ref 5: 'split' must be of type str, not int",
    ]
    assert find_faulty_records(CARD, save()) == []


def test_ids_that_occur_twice_are_a_fault_of_the_split(save):
    root = save([*REFS, make_ref(3, 5, 50, "train", {31: "again"}), make_ref(4, 5, 51, "train", {})])
    empty, twice = find_faulty_records(CARD, root)
    assert "ref 4: its list of sentences is empty" in empty
    assert twice == "toy train: ref_id 3 occurs twice; ids must be unique"
