import copy
import json
import pickle
import re

import numpy as np
import pytest

from ris_pipeline.datasets.card import Card, load_card
from ris_pipeline.datasets.check import RECORDS, check_dataset
from ris_pipeline.datasets.formats.refer import is_in_split
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import EmptySplitError, RisError

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


def faults_of(root):
    return [fault.text for fault in check_dataset(CARD, root).faults.get(RECORDS, ())]


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
        (change_refs(sentences=[{"sent_id": 1}]), r"refs\(unc\)\.p: ref 1: 'sent' must be of type str"),
        (change_refs(sentences=["red cup"]), "ref 1: 'sent_id' must be of type int"),
        (change_refs(ann_id=99), "ref 1: its annotation 99 is not in"),
        (change_refs(ann_id=60), "ref 1: its annotation 60 belongs to image 6, not 5"),
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
        make_ref(3, 5, 51, "train", {30: " "}),
        make_ref(4, 7, 50, "train", {40: "no image"}),
        make_ref(5, 5, 51, 3, {50: "of no split"}),
    ]
    root = save(refs)
    path = root / "refer" / "toy" / "refs(unc).p"
    assert sorted(faults_of(root)) == [
        f"{path}: ref 2: its annotation 999 is not in instances.json",
        f"{path}: ref 3, image COCO_train2014_000000000005.jpg: its sentence 30 is empty",
        f"{path}: ref 4: its image 7 is not in {root / 'refer' / 'toy' / 'instances.json'}",
        f"{path}: ref 5: 'split' must be of type str, not int",
    ]
    assert faults_of(save()) == []


def test_ids_that_occur_twice_are_a_fault_of_the_split(save):
    root = save([*REFS, make_ref(3, 5, 50, "train", {31: "again"}), make_ref(4, 5, 51, "train", {40: ""})])
    empty, twice = faults_of(root)
    assert "its sentence 40 is empty" in empty
    assert twice.endswith("refs(unc).p: ref 3: its ref_id 3 occurs twice; ids must be unique")


HW = (120, 160)
LEFT, RIGHT = (20, 30, 60, 100), (90, 40, 150, 90)  # two rectangles: left, top, right, bottom


def encode_down_the_columns(box):
    left, top, right, bottom = box
    mask = np.zeros(HW, int)
    mask[top:bottom, left:right] = 1
    return mask


def count_runs(flat):
    """COCO's uncompressed run lengths of 0 and 1, by counting."""
    runs, value = [0], 0
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(HW), "counts": runs}


def corners(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def xywh(left, top, right, bottom):
    return [left, top, right - left, bottom - top]


GOOD = {"bbox": xywh(*LEFT), "segmentation": corners(*LEFT)}


@pytest.fixture
def load(save):
    """Load one ref of two sentences, with changes of its record and its annotation."""

    def load(annotation=None, **record):
        instances = {
            "images": [{"id": 5, "file_name": "a.jpg", "height": HW[0], "width": HW[1]}],
            "annotations": [
                {"id": 50, "image_id": 5, "category_id": 1, **GOOD, **(annotation or {})},
                {"id": 51, "image_id": 5, "category_id": 2, "bbox": xywh(*RIGHT), "segmentation": corners(*RIGHT)},
            ],
        }
        ref = make_ref(1, 5, 50, "train", {10: "red cup", 11: "cup on the left"})
        return load_dataset(CARD, save([ref | record], instances), "train")

    return load


LEFT_MASK = encode_down_the_columns(LEFT)


@pytest.mark.parametrize(
    "annotation",
    [
        {},
        {"bbox": [22, 29, 41, 74]},  # drawn by hand, a little loose
        {"segmentation": count_runs(LEFT_MASK.T.ravel())},
        {"segmentation": [*corners(20, 30, 60, 50), *corners(30, 70, 60, 100)]},  # of two parts
    ],
)
def test_boxes_and_masks_of_one_object_are_read(load, annotation):
    assert len(load(annotation).refs) == 1


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"segmentation": corners(*RIGHT)}, "its box spans"),
        ({"segmentation": count_runs(LEFT_MASK.ravel())}, "its box spans .* run lengths down the columns"),
        ({"segmentation": [[v / 160 for v in corners(*LEFT)[0]]]}, "in shares of the image"),
        ({"segmentation": LEFT_MASK.tolist()}, "matrix of 0 and 1"),
        ({"segmentation": count_runs(np.zeros(HW, int).ravel())}, "no pixel of the object"),
        ({"segmentation": corners(20, 30, 20, 90)}, "enclose nothing"),
        ({"segmentation": []}, "expected polygons"),
        ({"bbox": list(LEFT)}, "lies outside the image"),  # corners where a width and a height belong
        ({"bbox": [30, 20, 70, 40]}, "its box spans"),  # y, x, h, w
        ({"bbox": [v / 160 for v in xywh(*LEFT)]}, "in shares of the image"),
        ({"bbox": [20, 30, 0, 70]}, "has no area"),
        ({"image_id": "5"}, "belongs to image '5' .as text; it must be a number., not 5"),
    ],
)
def test_boxes_and_masks_that_do_not_fit_are_refused(load, annotation, message):
    with pytest.raises(RisError, match=r"refs\(unc\)\.p: ref 1.*" + message):
        load(annotation)


@pytest.mark.parametrize("ann_id", [None, "50", [50, None], [50, -1]])
def test_other_annotation_ids_are_refused(load, ann_id):
    with pytest.raises(RisError, match=r"ref 1: ('ann_id' must be of type int|its annotation -1 is not in)"):
        load(ann_id=ann_id)


def test_a_list_of_one_annotation_is_that_annotation(load):
    (ref,) = load(ann_id=[50]).refs
    assert ref.box_xyxy == LEFT


@pytest.mark.parametrize("blank", ["", "   "])
def test_blank_sentences_are_refused(load, blank):
    with pytest.raises(RisError, match=r"ref 1.*: its sentence 11 is empty"):
        load(sentences=[{"sent_id": 10, "sent": "red cup"}, {"sent_id": 11, "sent": blank}])


def test_sentences_about_nothing_there_are_a_ref_of_their_own(load):
    """R-RefCOCO marks single sentences of a ref."""
    sentences = [{"sent_id": 10, "sent": "red cup", "exist": True}, {"sent_id": 11, "sent": "dog", "exist": False}]
    dataset = load(sentences=sentences)
    (cup,), (dog,) = dataset.refs, dataset.absent
    assert [e.sentence for e in cup.expressions] == ["red cup"]
    assert [(e.sent_id, e.sentence) for e in dog.expressions] == [(11, "dog")]
    assert (dog.ref_id, dog.label, dog.exists) == (cup.ref_id + 2**40, "1 (absent)", False)
    assert dataset.siblings(cup) == (dog,)
    assert "1 sentences are about nothing in their image: scored, not learnt" in dataset.remarks[0]
    with pytest.raises(EmptySplitError, match=r"no refs in the split 'train'.*1 about nothing"):
        load(sentences=sentences[1:])


def test_refs_without_sentences_are_left_out_and_counted(save):
    refs = [*REFS, make_ref(4, 5, 51, "train", {})]
    dataset = load_dataset(CARD, save(refs), "train")
    assert [ref.ref_id for ref in dataset.refs] == [1, 3]
    assert "1 refs without sentences are left out" in dataset.remarks[0]


def test_a_ref_of_another_category_than_its_annotation_is_told(load):
    assert load().remarks == ()
    assert "1 refs are of another category than their annotation" in load(ann_id=51).remarks[0]


def test_refs_of_splits_that_the_card_lacks_are_told(save):
    refs = [*REFS, make_ref(4, 5, 51, "Train", {40: "cup"}), make_ref(5, 5, 51, "minival", {50: "cup"})]
    (remark,) = load_dataset(CARD, save(refs), "train").remarks
    assert "'Train' 1, 'minival' 1" in remark
    with pytest.raises(RisError, match=r"no refs in the split 'testA'.*; there are 3 of 'train '"):
        load_dataset(CARD, save([ref | {"split": "train "} for ref in REFS]), "testA")


def test_annotations_that_no_ref_names_are_counted(save):
    assert check_dataset(CARD, save()).remarks == {}
    remarks = check_dataset(CARD, save([REFS[0], REFS[1]])).remarks
    assert list(remarks) == ["1 annotations on these images that no ref names"]


def test_ids_that_occur_twice_name_the_file_and_the_record(save):
    root = save([*REFS, make_ref(4, 5, 50, "train", {30: "again"})])
    with pytest.raises(RisError, match=r"refs\(unc\)\.p: ref 4: its sent_id 30 occurs twice, also in ref 3"):
        load_dataset(CARD, root, "train")


@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>404", "web page"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x1f\x8brest", "gzip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"", "is empty"),
    ],
)
def test_what_a_download_left_in_the_place_of_annotations_is_named(save, name, content, message):
    root = save()
    (root / "refer" / "toy" / name).write_bytes(content)
    with pytest.raises(RisError, match=rf"{re.escape(name)} .*{message}"):
        load_dataset(CARD, root, "train")


def test_converted_line_ends_are_named(save):
    path = save(protocol=0) / "refer" / "toy" / "refs(unc).p"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(RisError, match=r"refs\(unc\)\.p .* CRLF"):
        load_dataset(CARD, path.parents[2], "train")


@pytest.mark.parametrize("near", ["toy.zip", "toy/refs(unc) (1).p"])
def test_the_file_that_is_there_instead_is_named(save, near):
    folder = save() / "refer" / "toy"
    (folder / "refs(unc).p").rename(folder.parent / near)
    with pytest.raises(RisError, match=re.escape(f"; there is {folder.parent / near}")):
        load_dataset(CARD, folder.parents[1], "train")


def test_an_image_under_a_longer_name_is_named(save):
    root = save(**change_instances("images", file_name="000000000005.jpg"))
    for name in ("COCO_train2014_000000000005.jpg", "COCO_train2014_000000000006.jpg"):
        (root / "train2014" / name).write_bytes(b"x")
    (fault,) = check_dataset(CARD, root).faults["missing files"]
    assert fault.text.endswith("; there is " + str(root / "train2014" / "COCO_train2014_000000000005.jpg"))


def test_addresses_are_no_file_names(save):
    with pytest.raises(RisError, match="is an address"):
        load_dataset(CARD, save(**change_instances("images", file_name="http://a.b/c.jpg")), "train")


@pytest.mark.parametrize(("written", "there"), [("train2014\\a.jpg", "a.jpg"), ("cafe\u0301.jpg", "caf\u00e9.jpg")])
def test_an_image_of_another_spelling_is_named(save, written, there):
    root = save(**change_instances("images", file_name=written))
    for name in (there, "COCO_train2014_000000000006.jpg"):
        (root / "train2014" / name).write_bytes(b"x")
    (fault,) = check_dataset(CARD, root).faults["missing files"]
    assert fault.text.endswith(f"; there is {root / 'train2014' / there}")


@pytest.mark.parametrize(("name", "partition"), [("rrefcoco", "unc"), ("rrefcoco+", "unc"), ("rrefcocog", "umd")])
def test_r_refcoco_in_a_split_that_is_scored(save, name, partition):
    ref = make_ref(2, 6, 60, "val", {20: "dog", 21: "dog on the sofa"})
    ref["sentences"][1]["exist"] = False
    root = save([*REFS[:1], ref])
    (root / "refer" / "toy").rename(root / "refer" / name)
    path = root / "refer" / name / "refs(unc).p"
    path.rename(path.with_name(f"refs({partition}).p"))
    dataset = load_dataset(load_card(name), root, "val")
    assert [(ref.exists, [e.sentence for e in ref.expressions]) for ref in dataset.refs] == [
        (True, ["dog"]),
        (False, ["dog on the sofa"]),
    ]
    assert not dataset.load_mask(dataset.refs[1]).any()
