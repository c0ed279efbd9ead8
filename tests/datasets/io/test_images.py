import tracemalloc

import numpy as np
import PIL.features
import PIL.Image
import pytest
import torch

from ris_pipeline.datasets.io import files
from ris_pipeline.datasets.io.images import (
    load_image,
    renormalise,
    resize_square,
    size_of,
    to_batch,
    to_colours,
    to_pixels,
)
from ris_pipeline.datasets.records import Image
from ris_pipeline.errors import RisError


def save(path, array, **options):
    PIL.Image.fromarray(np.array(array, np.uint8)).save(path, **options)
    return path


def test_rgb_comes_back_as_stored(tmp_path):
    pixels = [[[255, 0, 0], [0, 255, 0], [1, 2, 3]]]
    image = load_image(save(tmp_path / "a.png", pixels))
    assert image.dtype == np.uint8
    assert image.tolist() == pixels


def test_grey_and_transparent_images_become_rgb(tmp_path):
    assert load_image(save(tmp_path / "g.png", [[7]])).tolist() == [[[7, 7, 7]]]
    assert load_image(save(tmp_path / "t.png", [[[1, 2, 3, 0]]])).tolist() == [[[1, 2, 3]]]


def test_the_image_is_not_turned_by_its_exif_orientation(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = save(tmp_path / "a.jpg", np.zeros((2, 5, 3)), exif=exif)
    assert load_image(path).shape == (2, 5, 3)


@pytest.mark.parametrize("suffix", ["avif", "webp"])
def test_todays_formats_are_read_as_far_as_pillow_does(tmp_path, suffix):
    if not PIL.features.check(suffix):
        pytest.skip(f"this Pillow was built without {suffix}")
    path = save(tmp_path / f"a.{suffix}", np.full((4, 6, 3), 200))
    np.testing.assert_allclose(load_image(path), np.full((4, 6, 3), 200), atol=4)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(RisError, match=r"a\.jpg is missing"):
        load_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"not a picture")
    with pytest.raises(RisError, match=r"b\.jpg is not a readable picture"):
        load_image(tmp_path / "b.jpg")
    (tmp_path / "d.jpg").write_bytes(b"\n<!DOCTYPE html><title>404</title>")
    with pytest.raises(RisError, match=r"d\.jpg is not a picture but a web page, as a dead link gives it"):
        load_image(tmp_path / "d.jpg")
    (tmp_path / "e.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(RisError, match=r"e\.heic is HEIC, which this Pillow does not read; save it as JPEG or PNG"):
        load_image(tmp_path / "e.heic")
    whole = save(tmp_path / "c.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3))).read_bytes()
    (tmp_path / "c.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RisError, match=r"c\.jpg is not a readable picture"):
        load_image(tmp_path / "c.jpg")
    with pytest.raises(RisError, match="is not a readable picture"):
        load_image(tmp_path)


def test_zeros_inside_a_jpeg_are_decoded_to_something(tmp_path):
    """Pillow does not tell: who wants to know compares checksums."""
    data = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 255, (120, 160, 3))).read_bytes()
    middle = len(data) // 2
    (tmp_path / "a.jpg").write_bytes(data[:middle] + bytes(200) + data[middle + 200 :])
    assert load_image(tmp_path / "a.jpg").shape == (120, 160, 3)


def test_too_large_images_are_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", np.zeros((5, 5)))
    monkeypatch.setattr(files, "MAX_PIXELS", 24)
    with pytest.raises(RisError, match=r"a\.png is too large \(5×5 pixels"):
        load_image(path)


def test_a_decoder_bomb_is_refused_by_its_header(tmp_path):
    """0.9 MB that would be 2.7 GB of pixels: nothing of them is decoded."""
    PIL.Image.new("1", (30_000, 30_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 1e6
    tracemalloc.start()
    with pytest.raises(RisError, match=r"a\.png is too large \(at most 64,000,000 pixels\); scale it down"):
        load_image(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("limit", [15, 8])  # PIL warns from its limit on, and raises from twice its limit on
def test_pils_own_limit_is_told_in_the_same_way(limit, tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", np.zeros((5, 5)))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(RisError, match=r"a\.png is too large"):
        load_image(path)


def test_pixels_of_a_plain_image():
    image = np.full((3, 5, 3), (255, 0, 51), np.uint8)
    pixels = to_pixels(image, 4)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 4, 4)
    assert pixels.is_contiguous()
    # (1 − 0.485) / 0.229, (0 − 0.456) / 0.224, (0.2 − 0.406) / 0.225
    assert pixels[:, 0, 0].tolist() == pytest.approx([2.2489083, -2.0357143, -0.9155556])
    assert (pixels == pixels[:, :1, :1]).all()


def test_pixels_by_other_statistics():
    pixels = to_pixels(np.full((3, 5, 3), (255, 0, 51), np.uint8), 2)
    assert to_colours(pixels)[:, 1, 1].tolist() == pytest.approx([1, 0, 0.2], abs=1e-6)
    other = renormalise(pixels[None], (0.5, 0.5, 0.1), (0.5, 0.25, 0.1))
    assert other.shape == (1, 3, 2, 2)
    assert other[0, :, 0, 1].tolist() == pytest.approx([1, -2, 1], abs=1e-6)


def test_a_batch_has_the_bits_of_its_images():
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 60, 3), np.uint8)
    batch = to_batch([resize_square(image, 32) for image in images], torch.device("cpu"))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, torch.stack([to_pixels(image, 32) for image in images]))


def test_halving_is_antialiased():
    # The triangle filter of a halving spans four columns with weights 1, 3, 3, 1; at the edge 3, 3, 1.
    row = np.array([[0, 0, 140, 140]], np.uint8)
    pixels = to_pixels(np.repeat(row[:, :, None], 3, axis=2).repeat(4, axis=0), 2)
    red = pixels[0] * 0.229 + 0.485
    assert (red * 255).round().tolist() == [[20, 120], [20, 120]]


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (RAMP.astype(np.uint16) * 257, "a.png"),
        (RAMP.astype(np.uint16) * 257, "a.tif"),
        (RAMP.astype(np.int32) * 1000 - 5000, "a.tif"),
        (RAMP.astype(np.float32) / 255, "a.tif"),
        (RAMP.astype(np.float32) * 3 - 80, "a.tif"),
    ],
)
def test_deep_grey_images_are_scaled(values, name, tmp_path):
    PIL.Image.fromarray(values).save(tmp_path / name)
    assert np.array_equal(load_image(tmp_path / name)[:, :, 1], RAMP)
    assert "scaled" in files.read_remark(tmp_path / name)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_needs_no_warning(tmp_path):
    picture = PIL.Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    assert load_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_record_is_turned_where_its_annotations_are(orientation, tmp_path):
    stored = np.array([[[0] * 3, [50] * 3, [100] * 3], [[150] * 3, [200] * 3, [250] * 3]], np.uint8)
    displayed = {  # by hand, of 0 50 100 / 150 200 250
        1: [[0, 50, 100], [150, 200, 250]],
        2: [[100, 50, 0], [250, 200, 150]],
        3: [[250, 200, 150], [100, 50, 0]],
        4: [[150, 200, 250], [0, 50, 100]],
        5: [[0, 150], [50, 200], [100, 250]],
        6: [[150, 0], [200, 50], [250, 100]],
        7: [[250, 100], [200, 50], [150, 0]],
        8: [[100, 250], [50, 200], [0, 150]],
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", stored, exif=exif)
    assert np.array_equal(load_image(path), stored)
    assert load_image(path, upright=True)[:, :, 0].tolist() == displayed
    assert load_image(Image(1, path, None, upright=True))[:, :, 0].tolist() == displayed
    assert size_of(Image(1, path, None, upright=True)) == np.shape(displayed)
    assert size_of(Image(1, path, None)) == (2, 3)


def test_a_picture_of_another_size_than_its_record_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((2, 5, 3)))
    with pytest.raises(RisError, match=r"a\.png has 5×2 pixels, its record says 10×4: .*original"):
        load_image(Image(1, path, (4, 10)))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    save(path, np.zeros((2, 5, 3)), exif=exif)
    with pytest.raises(RisError, match=r"a\.png has 5×2 pixels, its record says 2×5: its EXIF orientation turns it"):
        load_image(Image(1, path, (5, 2)))


def test_only_the_header_is_read_for_a_size(tmp_path):
    """A file cut behind its header still has its size."""
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
    path.write_bytes(path.read_bytes()[:200])
    assert size_of(Image(1, path, None)) == (64, 64)
