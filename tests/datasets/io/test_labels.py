import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ris_pipeline.datasets.io import labels
from ris_pipeline.errors import RisError

LABEL = np.array([[0, 1, 1, 0], [0, 1, 255, 0], [255, 0, 0, 0]], dtype=np.uint8)

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def test_label_file_is_an_8_bit_png_of_the_image_size(tmp_path):
    path = tmp_path / "17.png"
    labels.save_label(path, LABEL)
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (4, 3))
        np.testing.assert_array_equal(np.array(picture), LABEL)
    assert [p.name for p in tmp_path.iterdir()] == ["17.png"]


@given(hnp.arrays(np.uint8, shapes, elements=st.sampled_from([0, 1, 255])))
def test_label_comes_back(tmp_path_factory, label):
    path = tmp_path_factory.mktemp("labels") / "1.png"
    labels.save_label(path, label)
    loaded = labels.load_label(path)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, label)


@pytest.mark.parametrize("label", [np.full((2, 2), 2, np.uint8), np.zeros((2, 2), bool), np.zeros((2, 2, 3), np.uint8)])
def test_what_is_no_label_is_not_saved(tmp_path, label):
    with pytest.raises(ValueError, match="a label"):
        labels.save_label(tmp_path / "1.png", label)
    assert not list(tmp_path.iterdir())


def test_any_flipped_bit_of_a_label_is_found(tmp_path):
    """Not by decoding it, which passes over the checksum of the pixels."""
    path = tmp_path / "1.png"
    labels.save_label(path, np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (20, 30)))
    assert labels.has_right_checksums(path)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert not labels.has_right_checksums(path), bit
    for size in (0, 5, 8, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert not labels.has_right_checksums(path), size
    path.write_bytes(whole + b"x")
    assert not labels.has_right_checksums(path)
    path.write_bytes(whole)
    assert labels.has_right_checksums(path)


def test_failed_write_leaves_the_old_label(tmp_path, monkeypatch):
    path = tmp_path / "17.png"
    labels.save_label(path, LABEL)

    def write_half(self, file, format):
        file.write(b"\x89PNG")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        labels.save_label(path, 1 - LABEL.clip(0, 1))
    monkeypatch.undo()
    np.testing.assert_array_equal(labels.load_label(path), LABEL)
    assert [p.name for p in tmp_path.iterdir()] == ["17.png"]


def test_load_label_errors_name_the_file(tmp_path):
    with pytest.raises(RisError, match=r"none\.png"):
        labels.load_label(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(RisError, match=r"text\.png"):
        labels.load_label(tmp_path / "text.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(RisError, match=r"rgb\.png: .*uint8 \(2, 2, 3\)"):
        labels.load_label(tmp_path / "rgb.png")
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(tmp_path / "seven.png")
    with pytest.raises(RisError, match=r"seven\.png: .*not 7"):
        labels.load_label(tmp_path / "seven.png")
    labels.save_label(tmp_path / "cut.png", LABEL)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    with pytest.raises(RisError, match=r"cut\.png"):
        labels.load_label(tmp_path / "cut.png")
