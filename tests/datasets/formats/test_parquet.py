"""Parquet files in the schemas of the hub's cards: jxu124/refcoco, lmms-lab/RefCOCO, moondream/refcoco-m."""

import io
import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ris_pipeline.chain.context import Context
from ris_pipeline.chain.data import unpack_images
from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError

NAME = "COCO_train2014_000000581857.jpg"
SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]  # four columns by five rows
SENTENCE = pa.struct(
    [("raw", pa.string()), ("sent", pa.string()), ("sent_id", pa.int64()), ("tokens", pa.list_(pa.string()))]
)
JXU124 = pa.schema([
    ("sent_ids", pa.list_(pa.int64())), ("file_name", pa.string()), ("ann_id", pa.int64()), ("ref_id", pa.int64()),
    ("image_id", pa.int64()), ("split", pa.string()), ("sentences", pa.list_(SENTENCE)), ("category_id", pa.int64()),
    ("raw_anns", pa.string()), ("raw_image_info", pa.string()), ("raw_sentences", pa.string()),
    ("image_path", pa.string()), ("bbox", pa.list_(pa.float64())), ("captions", pa.list_(pa.string())),
    ("global_image_id", pa.string()), ("anns_id", pa.string()),
])  # fmt: skip
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LMMS = pa.schema([
    ("question_id", pa.string()), ("image", IMAGE), ("question", pa.string()), ("answer", pa.list_(pa.string())),
    ("segmentation", pa.list_(pa.float32())), ("bbox", pa.list_(pa.float32())), ("iscrowd", pa.int8()),
    ("file_name", pa.string()),
])  # fmt: skip
SAMPLE = pa.struct([
    ("id", pa.int64()), ("image_id", pa.int64()), ("category", pa.string()), ("supercategory", pa.string()),
    ("label", pa.string()), ("sentences", pa.list_(pa.string())), ("bbox", pa.list_(pa.float32())),
    ("mask", pa.struct([("counts", pa.string()), ("size", pa.list_(pa.int32()))])),
])  # fmt: skip
REFCOCO_M = pa.schema([
    ("image", IMAGE), ("image_id", pa.int64()), ("file_name", pa.string()), ("samples", pa.list_(SAMPLE)),
])  # fmt: skip


def picture():
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(file, format="JPEG")
    return {"bytes": file.getvalue(), "path": None}


def jxu124_row(ref_id, split, *sentences, **annotation):
    annotation = {
        "id": 50 + ref_id, "image_id": 581857, "category_id": 1, "iscrowd": 0, "area": 20.0, "bbox": [2, 3, 4, 5],
        "segmentation": [SQUARE], **annotation,
    }  # fmt: skip
    image = {"id": 581857, "file_name": NAME, "height": 10, "width": 20, "license": 4}
    listed = [
        {"raw": s.title(), "sent": s, "sent_id": 10 * ref_id + k, "tokens": s.split()} for k, s in enumerate(sentences)
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in listed], "file_name": f"{NAME[:-4]}_{ref_id}.jpg",
        "ann_id": 50 + ref_id, "ref_id": ref_id, "image_id": 581857, "split": split, "sentences": listed,
        "category_id": 1, "raw_anns": json.dumps(annotation), "raw_image_info": json.dumps(image),
        "raw_sentences": json.dumps(listed), "image_path": f"coco/train2014/{NAME}", "bbox": [2.0, 3.0, 6.0, 8.0],
        "captions": list(sentences), "global_image_id": "coco.581857", "anns_id": str(50 + ref_id),
    }  # fmt: skip


def lmms_row(question_id, *sentences, **changes):
    return {
        "question_id": question_id, "image": picture(), "question": "Please describe this region.",
        "answer": list(sentences), "segmentation": SQUARE, "bbox": [2.0, 3.0, 4.0, 5.0], "iscrowd": 0,
        "file_name": f"{NAME[:-4]}_16.jpg", **changes,
    }  # fmt: skip


@pytest.fixture
def save(tmp_path):
    def save(file, schema, *rows):
        path = tmp_path / "hf" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
        return tmp_path

    return save


def test_refs_as_rows_with_json(save):
    """jxu124's testA is in the file called test."""
    save("refcoco/data/train-00000-of-00001.parquet", JXU124, jxu124_row(1, "train", "red cup", "cup on the left"))
    root = save("refcoco/data/test-00000-of-00001.parquet", JXU124, jxu124_row(2, "testA", "a man"))
    (root / "train2014").mkdir()
    dataset = load_dataset(load_card("refcoco-hf"), root, "train")
    (ref,) = dataset.refs
    assert [(e.sent_id, e.sentence) for e in ref.expressions] == [(10, "red cup"), (11, "cup on the left")]
    assert ref.box_xyxy == (2, 3, 6, 8)
    mask = dataset.load_mask(ref)
    assert mask.shape == (10, 20)
    assert mask[3:8, 2:6].all()
    assert mask.sum() == 20
    assert dataset.images[581857].path == root / "train2014" / NAME
    assert [ref.ref_id for ref in load_dataset(load_card("refcoco-hf"), root, "testA").refs] == [2]


def test_a_bad_row_is_named(save):
    row = jxu124_row(1, "train", "red cup") | {"raw_anns": "{"}
    root = save("refcoco/train.parquet", JXU124, row)
    (root / "train2014").mkdir()
    with pytest.raises(RisError, match=r"train\.parquet: row 0: 'raw_anns' is not valid JSON"):
        load_dataset(load_card("refcoco-hf"), root, "train")
    row = jxu124_row(1, "train", "red cup", bbox=[12, 3, 4, 5])
    save("refcoco/train.parquet", JXU124, row)
    with pytest.raises(RisError, match=r"ref 1.*its box spans"):
        load_dataset(load_card("refcoco-hf"), root, "train")


def test_images_inside_are_unpacked_and_read(save):
    card = load_card("refcoco-lmms")
    rows = [lmms_row("1", "red cup", "cup"), lmms_row("2", "the cup")]
    root = save("RefCOCO/data/testA-00000-of-00001.parquet", LMMS, *rows)
    save("RefCOCO/data/test-00000-of-00001.parquet", LMMS, lmms_row("3", "of another split"))
    with pytest.raises(RisError, match="`ris data unpack --dataset refcoco-lmms` writes the images"):
        load_dataset(card, root, "testA")
    folder = unpack_images(Context(card, data_root=root))
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert (folder / NAME).read_bytes() == picture()["bytes"]
    dataset = load_dataset(card, root, "testA")
    first, second = dataset.refs
    assert [e.sentence for ref in dataset.refs for e in ref.expressions] == ["red cup", "cup", "the cup"]
    assert (first.image_id, dataset.images[581857].hw) == (581857, (10, 20))
    assert first.box_xyxy == (2, 3, 6, 8)
    assert dataset.load_mask(second).sum() == 20
    # Ids do not depend on the order of the rows.
    save("RefCOCO/data/testA-00000-of-00001.parquet", LMMS, *reversed(rows))
    again = load_dataset(card, root, "testA").refs
    assert [ref.ref_id for ref in again] == [second.ref_id, first.ref_id]


def test_of_a_crowd_and_of_a_part_only_the_box_is_taken(save):
    card = load_card("refcoco-lmms")
    rows = [lmms_row("1", "crowd", iscrowd=1), lmms_row("2", "two parts", bbox=[2.0, 0.0, 18.0, 9.0])]
    root = save("RefCOCO/data/testB.parquet", LMMS, *rows)
    unpack_images(Context(card, data_root=root))
    dataset = load_dataset(card, root, "testB")
    assert [(ref.has_mask, ref.box_xyxy) for ref in dataset.refs] == [(False, (2, 3, 6, 8)), (False, (2, 0, 20, 9))]
    assert any("1 masks are left out: they do not span their boxes" in remark for remark in dataset.remarks)


def test_refcoco_m(save):
    # Rows 2 to 4 of the columns 1 to 4, as pycocotools packs them.
    packed = {"counts": "<3700000d4", "size": [10, 20]}
    sample = {
        "id": 7, "image_id": 581857, "category": "cup", "supercategory": "kitchen", "label": "cup",
        "sentences": ["red cup", "cup"], "bbox": [1.0, 2.0, 4.0, 3.0], "mask": packed,
    }  # fmt: skip
    row = {"image": picture(), "image_id": 581857, "file_name": NAME, "samples": [sample]}
    root = save("refcoco-m/data/validation-00000-of-00002.parquet", REFCOCO_M, row)
    card = load_card("refcoco-m")
    unpack_images(Context(card, data_root=root))
    dataset = load_dataset(card, root, "val")
    (ref,) = dataset.refs
    assert (ref.ref_id, dataset.images[581857].hw) == (7, (10, 20))
    assert [e.sentence for e in ref.expressions] == ["red cup", "cup"]
    mask = dataset.load_mask(ref)
    assert mask[2:5, 1:5].all()
    assert mask.sum() == 12


def test_files_that_are_something_else(save, tmp_path):
    card = load_card("refcoco-hf")
    root = save("refcoco/train.parquet", pa.schema([("text", pa.string())]), {"text": "a"})
    (root / "train2014").mkdir()
    with pytest.raises(RisError, match=r"train\.parquet: its columns text are in none of the known layouts"):
        load_dataset(card, root, "train")
    path = tmp_path / "hf" / "refcoco" / "train.parquet"
    path.write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(RisError, match="is not annotations but a web page"):
        load_dataset(card, root, "train")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(RisError, match="is not a readable parquet file"):
        load_dataset(card, root, "train")
    with pytest.raises(RisError, match="refcoco has no images in its annotation files"):
        unpack_images(Context(load_card("refcoco"), data_root=root))


def test_a_name_that_leads_out_writes_nothing(save, tmp_path):
    root = save("RefCOCO/val.parquet", LMMS, lmms_row("1", "cup", file_name="../../../out.jpg"))
    with pytest.raises(RisError, match="leads out of"):
        unpack_images(Context(load_card("refcoco-lmms"), data_root=root))
    assert not list(tmp_path.rglob("out.jpg"))
