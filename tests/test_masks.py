"""Pseudo-label files, run lengths and pictures."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from ris_pipeline import masks
from ris_pipeline.errors import RisError

# pycocotools 2.0.11 decodes by a conversion that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LABEL = np.array([[0, 1, 1, 0], [0, 1, 255, 0], [255, 0, 0, 0]], dtype=np.uint8)

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
bool_masks = hnp.arrays(bool, shapes)


def test_label_file_is_an_8_bit_png_of_the_image_size(tmp_path):
    path = tmp_path / "17.png"
    masks.save_label(path, LABEL)
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (4, 3))
        np.testing.assert_array_equal(np.array(picture), LABEL)
    assert [p.name for p in tmp_path.iterdir()] == ["17.png"]


@given(hnp.arrays(np.uint8, shapes, elements=st.sampled_from([0, 1, 255])))
def test_label_comes_back(tmp_path_factory, label):
    path = tmp_path_factory.mktemp("labels") / "1.png"
    masks.save_label(path, label)
    loaded = masks.load_label(path)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, label)


@pytest.mark.parametrize("label", [np.full((2, 2), 2, np.uint8), np.zeros((2, 2), bool), np.zeros((2, 2, 3), np.uint8)])
def test_what_is_no_label_is_not_saved(tmp_path, label):
    with pytest.raises(ValueError, match="a label"):
        masks.save_label(tmp_path / "1.png", label)
    assert not list(tmp_path.iterdir())


def test_any_flipped_bit_of_a_label_is_found(tmp_path):
    """Not by decoding it, which passes over the checksum of the pixels."""
    path = tmp_path / "1.png"
    masks.save_label(path, np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (20, 30)))
    assert masks.has_right_checksums(path)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert not masks.has_right_checksums(path), bit
    for size in (0, 5, 8, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert not masks.has_right_checksums(path), size
    path.write_bytes(whole + b"x")
    assert not masks.has_right_checksums(path)
    path.write_bytes(whole)
    assert masks.has_right_checksums(path)


def test_failed_write_leaves_the_old_label(tmp_path, monkeypatch):
    path = tmp_path / "17.png"
    masks.save_label(path, LABEL)

    def write_half(self, file, format):
        file.write(b"\x89PNG")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        masks.save_label(path, 1 - LABEL.clip(0, 1))
    monkeypatch.undo()
    np.testing.assert_array_equal(masks.load_label(path), LABEL)
    assert [p.name for p in tmp_path.iterdir()] == ["17.png"]


def test_load_label_errors_name_the_file(tmp_path):
    with pytest.raises(RisError, match=r"none\.png"):
        masks.load_label(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(RisError, match=r"text\.png"):
        masks.load_label(tmp_path / "text.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(RisError, match=r"rgb\.png: .*uint8 \(2, 2, 3\)"):
        masks.load_label(tmp_path / "rgb.png")
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(tmp_path / "seven.png")
    with pytest.raises(RisError, match=r"seven\.png: .*not 7"):
        masks.load_label(tmp_path / "seven.png")
    masks.save_label(tmp_path / "cut.png", LABEL)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    with pytest.raises(RisError, match=r"cut\.png"):
        masks.load_label(tmp_path / "cut.png")


@given(bool_masks)
def test_rle_is_what_coco_reads(mask):
    rle = json.loads(json.dumps(masks.encode_rle(mask)))
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    assert coco_mask.area(rle) == mask.sum()
    np.testing.assert_array_equal(masks.decode_rle(rle), mask)


@given(bool_masks)
def test_rle_runs_down_the_columns(mask):
    """COCO's uncompressed form, counted here: runs of 0, 1, 0, … down the columns, the first of 0."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    compressed = coco_mask.frPyObjects({"size": list(mask.shape), "counts": runs}, *mask.shape)
    assert masks.encode_rle(mask)["counts"] == compressed["counts"].decode("ascii")
    assert masks.encode_rle(mask)["size"] == list(mask.shape)


def test_decoded_rle_is_bool():
    assert masks.decode_rle(masks.encode_rle(LABEL == 1)).dtype == bool


def test_overlay_mask():
    image = np.full((2, 2, 3), 100, np.uint8)
    image[1, 1] = (0, 0, 255)
    mask = np.array([[True, False], [False, True]])
    painted = masks.overlay_mask(image, mask, colour=(200, 0, 50), opacity=0.5)
    np.testing.assert_array_equal(painted, [[[150, 50, 75], [100, 100, 100]], [[100, 100, 100], [100, 0, 152]]])
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(image[0, 0], [100, 100, 100])  # the image itself is left


def test_colour_map_runs_from_blue_over_green_to_red():
    picture = masks.colour_map(np.array([[0.1, 0.5, 0.9], [-1.0, 0.0, 0.0], [2.0, 1.0, 1.0]]))
    assert (picture.shape, picture.dtype) == ((3, 3, 3), np.uint8)
    assert [int(np.argmax(pixel)) for pixel in picture[0]] == [2, 1, 0]
    np.testing.assert_array_equal(picture[1, 0], picture[1, 1])  # clipped
    np.testing.assert_array_equal(picture[2, 0], picture[2, 1])


def test_contact_sheet_places_tiles_row_by_row():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    tiles = [("a red one", np.full((40, 80, 3), colour, np.uint8)) for colour in colours]
    sheet = masks.contact_sheet(tiles, n_columns=2, tile_hw=(20, 20))
    # 20×20 tiles, 18 rows of caption and a gap of 4 between: 2·42 − 4 rows, 2·24 − 4 columns
    assert (sheet.shape, sheet.dtype) == ((80, 44, 3), np.uint8)
    for (y, x), colour in zip([(10, 10), (10, 34), (52, 10)], colours, strict=True):
        np.testing.assert_array_equal(sheet[y, x], colour)
    np.testing.assert_array_equal(sheet[2, 10], [255] * 3)  # 80×40 fits as 20×10: white above
    np.testing.assert_array_equal(sheet[52, 34], [255] * 3)  # no fourth tile
    assert (sheet[20:38, :20] < 128).any()  # the caption


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=80))
def test_contact_sheet_takes_any_caption(caption):
    sheet = masks.contact_sheet([(caption, np.zeros((4, 4, 3), np.uint8))], tile_hw=(30, 40))
    assert sheet.shape == (48, 40, 3)


def test_long_captions_stay_in_their_tile():
    tile = np.full((20, 60, 3), 255, np.uint8)
    sheet = masks.contact_sheet([("a very long sentence " * 9, tile), ("", tile)], tile_hw=(20, 60))
    assert (sheet[:, 64:] == 255).all()


def test_contact_sheet_needs_a_tile():
    with pytest.raises(ValueError, match="needs a tile"):
        masks.contact_sheet([])
