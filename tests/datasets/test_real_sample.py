"""Against small pieces of the real data sets, where they lie beside the checkout."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.io.images import load_image
from ris_pipeline.datasets.io.segmentations import load_segmentation
from ris_pipeline.datasets.load import load_dataset

SAMPLE = Path(__file__).resolve().parents[2].parent / "shared" / "real-sample"
pytestmark = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real samples are not here")


@pytest.mark.parametrize(
    ("folder", "name", "n_images", "n_sentences"),
    [
        ("coco", "refcoco", 84, 587),
        ("coco", "refcoco+", 84, 579),
        ("coco", "refcocog@umd", 86, 309),
        ("coco-unique", "refcoco", 79, 394),
    ],
)
def test_refer(folder, name, n_images, n_sentences):
    card = load_card(name)
    train, val = (load_dataset(card, SAMPLE / folder, split) for split in ("train", "val"))
    assert len(train.images) + len(val.images) == n_images
    assert train.n_expressions + val.n_expressions == n_sentences
    assert not train.images.keys() & val.images.keys()
    for dataset in (train, val):
        assert all(ref.box_xyxy and ref.has_mask for ref in dataset.refs)
        for ref in dataset.refs[::10]:
            image = dataset.images[ref.image_id]
            assert load_image(image.path).shape == (*image.hw, 3)
            mask = dataset.load_mask(ref)
            assert mask.shape == image.hw
            ys, xs = mask.nonzero()
            x1, y1, x2, y2 = ref.box_xyxy
            # The mask fills its box, but for the tips of its corners.
            assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == pytest.approx([x1, y1, x2, y2], abs=3)


def test_referit():
    train, test = (load_dataset(load_card("referit"), SAMPLE, split) for split in ("train", "test"))
    assert (train.n_expressions, len(train.refs)) == (59_976, 44_649 + 4_866)
    assert (test.n_expressions, len(test.refs)) == (60_105, 49_730)
    assert all(ref.box_xyxy and not ref.has_mask for ref in test.refs)
    assert not train.images.keys() & test.images.keys()
    for image_id in (38100, 40429):
        image = test.images[image_id]
        assert load_image(image.path).shape == (*image.hw, 3)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("coco", "refcoco"), ("coco", "refcoco+"), ("coco", "refcocog@umd"), ("coco-unique", "refcoco")],
)
def test_masks_equal_pycocotools(folder, name):
    """By polygon, by COCO's compressed run lengths and by plain ones; of every ref.

    The union of all polygons, as pycocotools merges them. TRIS leaves out what two polygons of an object both cover.
    """
    card = load_card(name)
    objects = json.loads((SAMPLE / folder / card.annotations / "instances.json").read_text())["annotations"]
    polygons_of = [annotation["segmentation"] for annotation in objects]
    n_polygons = 0
    for dataset in (load_dataset(card, SAMPLE / folder, split) for split in ("train", "val")):
        for ref in dataset.refs:
            hw = dataset.images[ref.image_id].hw
            (segmentation,) = (annotation.segmentation for annotation in ref.annotations)
            polygons = [list(polygon) for polygon in segmentation]
            assert polygons in polygons_of
            packed = coco_mask.merge(coco_mask.frPyObjects(polygons, *hw))
            expected = coco_mask.decode(packed).astype(bool)
            assert np.array_equal(dataset.load_mask(ref), expected)
            assert np.array_equal(load_segmentation(packed, hw), expected)
            text = {"size": list(hw), "counts": packed["counts"].decode()}
            assert np.array_equal(load_segmentation(text, hw), expected)
            columns = np.concatenate([[False], expected.T.ravel(), [False]])
            ends = np.flatnonzero(columns[1:] != columns[:-1])
            plain = {"size": list(hw), "counts": np.diff([0, *ends, expected.size]).tolist()}
            assert np.array_equal(load_segmentation(plain, hw), expected)
            n_polygons += len(segmentation)
    assert n_polygons > 80
