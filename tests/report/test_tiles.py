import base64
import io

import numpy as np
import pytest
from PIL import Image

from ris_pipeline.report.panels import Panel
from ris_pipeline.report.tiles import MASK_OPACITY, blend_panel, encode_panel, encode_photo, fit_hw


def decode(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    ("hw", "side", "fitted"), [((480, 640), 160, (120, 160)), ((100, 50), 400, (100, 50)), ((1, 900), 90, (1, 90))]
)
def test_a_tile_keeps_the_proportion_and_is_never_larger(hw, side, fitted):
    assert fit_hw(hw, side) == fitted


def test_a_photograph_is_a_small_webp():
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    picture = decode(encode_photo(image, 160))
    assert (picture.format, picture.size) == ("WEBP", (160, 120))


def test_a_mask_is_its_colour_where_it_is_and_transparent_elsewhere():
    label = np.zeros((40, 60), np.uint8)
    label[10:20, 30:50] = 1
    label[30:, :] = 255
    layer = np.array(
        decode(encode_panel(Panel("pseudo-refined", "", "mask", label, colour=(10, 20, 30)), (40, 60), 60)).convert(
            "RGBA"
        )
    )
    assert layer.shape == (40, 60, 4)
    assert layer[15, 40].tolist() == [10, 20, 30, MASK_OPACITY]
    assert layer[5, 5, 3] == 0
    assert layer[10, 30].tolist() == layer[19, 49].tolist() == [255, 255, 255, 230]  # its contour
    assert len(set(layer[35, 5, :3].tolist())) == 1  # grey: to be ignored
    assert (layer[:, :, 3] > 0).sum() == 10 * 20 + 10 * 60


def test_a_map_hides_more_of_the_image_where_it_is_larger():
    response = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    alpha = np.array(decode(encode_panel(Panel("step1", "", "map", response), (64, 64), 64)))[:, :, 3].astype(int)
    assert alpha[:, 0].max() < 60
    assert alpha[:, -1].min() > 180


def test_a_boundary_is_opaque():
    assert (
        decode(encode_panel(Panel("boundary", "", "boundary", np.ones((16, 16), np.float32)), (64, 64), 64)).mode
        == "RGB"
    )


def test_an_empty_panel_gives_no_picture():
    image = np.zeros((8, 8, 3), np.uint8)
    assert encode_panel(Panel("step1", "", "map"), (8, 8), 8) is None
    assert blend_panel(image, Panel("step1", "", "map")) is None


def test_a_figure_shows_the_image_where_the_mask_is_not():
    image = np.full((8, 8, 3), 200, np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 1
    blended = blend_panel(image, Panel("truth", "", "truth", mask))
    assert (blended[4:] == 200).all()
    assert (blended[:4] != 200).any(axis=2).all()
