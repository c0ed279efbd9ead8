import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ris_pipeline import pictures


def test_overlay_mask():
    image = np.full((2, 2, 3), 100, np.uint8)
    image[1, 1] = (0, 0, 255)
    mask = np.array([[True, False], [False, True]])
    painted = pictures.overlay_mask(image, mask, colour=(200, 0, 50), opacity=0.5)
    np.testing.assert_array_equal(painted, [[[150, 50, 75], [100, 100, 100]], [[100, 100, 100], [100, 0, 152]]])
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(image[0, 0], [100, 100, 100])  # the image itself is left


def test_colour_map_runs_from_blue_over_green_to_red():
    picture = pictures.colour_map(np.array([[0.1, 0.5, 0.9], [-1.0, 0.0, 0.0], [2.0, 1.0, 1.0]]))
    assert (picture.shape, picture.dtype) == ((3, 3, 3), np.uint8)
    assert [int(np.argmax(pixel)) for pixel in picture[0]] == [2, 1, 0]
    np.testing.assert_array_equal(picture[1, 0], picture[1, 1])  # clipped
    np.testing.assert_array_equal(picture[2, 0], picture[2, 1])


def test_contact_sheet_places_tiles_row_by_row():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    tiles = [("a red one", np.full((40, 80, 3), colour, np.uint8)) for colour in colours]
    sheet = pictures.contact_sheet(tiles, n_columns=2, tile_hw=(20, 20))
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
    sheet = pictures.contact_sheet([(caption, np.zeros((4, 4, 3), np.uint8))], tile_hw=(30, 40))
    assert sheet.shape == (48, 40, 3)


def test_long_captions_stay_in_their_tile():
    tile = np.full((20, 60, 3), 255, np.uint8)
    sheet = pictures.contact_sheet([("a very long sentence " * 9, tile), ("", tile)], tile_hw=(20, 60))
    assert (sheet[:, 64:] == 255).all()


def test_contact_sheet_needs_a_tile():
    with pytest.raises(ValueError, match="needs a tile"):
        pictures.contact_sheet([])
