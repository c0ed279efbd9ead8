import json
from array import array

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from ris_pipeline.datasets.io.segmentations import encode_rle, load_segmentation, pack_polygons
from ris_pipeline.errors import RisError

SQUARE = [0, 0, 2, 0, 2, 2, 0, 2]


def test_polygon():
    mask = load_segmentation([SQUARE], (3, 4))
    assert mask.dtype == bool
    assert mask.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_polygons_are_united_where_they_overlap():
    mask = load_segmentation([SQUARE, [1, 0, 3, 0, 3, 2, 1, 2]], (3, 4))
    assert mask.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_polygons_are_packed_and_what_is_none_is_left():
    runs = {"size": [3, 4], "counts": [12]}
    record = {"id": 7, "segmentation": [SQUARE, [0, True, 2, 0, 2, 2], ["a", 1], [10**400] * 6, runs]}
    packed = pack_polygons(record)
    assert packed["id"] == 7
    assert packed["segmentation"] == [array("d", SQUARE), [0, True, 2, 0, 2, 2], ["a", 1], [10**400] * 6, runs]
    assert isinstance(packed["segmentation"][0], array)
    assert pack_polygons({"segmentation": runs}) == {"segmentation": runs}
    assert (load_segmentation(packed["segmentation"][:1], (3, 4)) == load_segmentation([SQUARE], (3, 4))).all()
    for part in packed["segmentation"][1:]:
        with pytest.raises(ValueError, match="x, y pairs"):
            load_segmentation([SQUARE, part], (3, 4))


def test_polygons_without_area_are_passed_over():
    # Four numbers are two corners, not the box that pycocotools would make of them.
    assert load_segmentation([[0, 0, 3, 3], SQUARE], (3, 4)).sum() == 4
    with pytest.raises(ValueError, match="no polygon has three corners"):
        load_segmentation([[0, 0, 3, 3]], (3, 4))


def test_run_lengths_go_down_the_columns():
    # 2 rows, 3 columns; background 1, object 3, background 2: pixels (1,0), (0,1), (1,1).
    mask = load_segmentation({"size": [2, 3], "counts": [1, 3, 2]}, (2, 3))
    assert mask.astype(int).tolist() == [[0, 1, 0], [1, 1, 0]]


def test_run_lengths_are_united():
    left = {"size": [1, 3], "counts": [0, 1, 2]}
    right = {"size": [1, 3], "counts": [2, 1]}
    assert load_segmentation([left, right], None).tolist() == [[True, False, True]]


@settings(max_examples=80, deadline=None)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)), st.booleans())
def test_compressed_run_lengths_agree_with_pycocotools(mask, as_text):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if as_text:
        rle["counts"] = rle["counts"].decode()
    assert (load_segmentation(rle, mask.shape) == mask).all()


def test_long_runs():
    mask = np.zeros((900, 1100), bool)
    mask[3:800, 5:1000] = True
    mask[400, 500] = False
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (load_segmentation(rle, None) == mask).all()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 4], "counts": ""}, "fill 0 of 16"),
        ({"size": [4, 4], "counts": [3, 5]}, "fill 8 of 16"),
        ({"size": [4, 4], "counts": [30]}, "fill 30 of 16"),
        ({"size": [4, 4], "counts": [3, -5, 18]}, "none negative"),
        ({"size": [4, 4], "counts": "~~"}, "broken"),
        ({"size": [4, 4], "counts": "eJwzNDBQMDQyVjAEAAicAaU="}, r"broken \(base64 text\?"),  # Open Images'
        ({"size": [4, 4], "counts": "3 2 7 2"}, r"broken \(starts and lengths as Kaggle's\?"),
        ({"size": [4, 4], "counts": [[3, 2], [7, 2]]}, "whole numbers"),
        (
            {"format": "rle", "rle": [0, 1, 2]},
            r"need 'size' and 'counts'; it has \['format', 'rle'\]",
        ),  # Label Studio's
        ({"size": [4, 4], "counts": "P" * 50}, "broken|break off"),
        ({"size": [4, 4], "counts": "`"}, "broken|break off"),
        ({"size": [4, 4], "counts": None}, "whole numbers"),
        ({"size": [5, 4], "counts": [20]}, "4×5 pixels, the image has 4×4"),
        ({"counts": [16]}, "size"),
        ({"size": ["4", 4], "counts": [16]}, "size"),
        ([[0, 0, 1, 1, 2]], "x, y pairs"),
        ([[0, 0, 1, float("nan"), 2, 2]], "far outside"),
        ([[0, 0, 2, 0, 2, 1e9]], "far outside"),
        ([SQUARE, {"size": [4, 4], "counts": [16]}], "x, y pairs"),
        ([], "expected polygons"),
        ("mask.png", "expected polygons"),
    ],
)
def test_faulty_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation(segmentation, (4, 4))


def test_polygons_need_the_size():
    with pytest.raises(ValueError, match="size"):
        load_segmentation([SQUARE], None)


def test_run_lengths_of_an_absurd_size_are_refused_before_they_are_laid_out():
    with pytest.raises(ValueError, match="more than"):
        load_segmentation({"size": [10**6, 10**6], "counts": [10**12]}, None)


@pytest.mark.parametrize("values", [[[0, 1], [255, 0]], [[False, True], [True, False]]])
def test_png(values, tmp_path):
    array = np.array(values)
    picture = PIL.Image.fromarray(array if array.dtype == bool else array.astype(np.uint8))
    picture.save(tmp_path / "m.png")
    assert load_segmentation(tmp_path / "m.png", None).tolist() == [[False, True], [True, False]]


def test_png_with_a_palette_is_read_by_index(tmp_path):
    picture = PIL.Image.new("P", (2, 1))
    picture.putpixel((1, 0), 1)
    picture.putpalette([255, 255, 255, 0, 0, 0])  # 0 is white, 1 is black
    picture.save(tmp_path / "m.png")
    assert load_segmentation(tmp_path / "m.png", None).tolist() == [[False, True]]


def test_coloured_png_is_no_mask(tmp_path):
    PIL.Image.new("RGBA", (2, 2)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="4 channels"):
        load_segmentation(tmp_path / "m.png", None)


def test_missing_png(tmp_path):
    with pytest.raises(RisError, match="missing"):
        load_segmentation(tmp_path / "m.png", None)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_rle_is_what_coco_reads(mask):
    rle = json.loads(json.dumps(encode_rle(mask)))
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    assert coco_mask.area(rle) == mask.sum()


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_rle_runs_down_the_columns(mask):
    """COCO's uncompressed form, counted here: runs of 0, 1, 0, … down the columns, the first of 0."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    compressed = coco_mask.frPyObjects({"size": list(mask.shape), "counts": runs}, *mask.shape)
    assert encode_rle(mask)["counts"] == compressed["counts"].decode("ascii")
    assert encode_rle(mask)["size"] == list(mask.shape)
