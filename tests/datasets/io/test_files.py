from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ris_pipeline.datasets.io import files
from ris_pipeline.datasets.io.files import load_json, resolve_inside
from ris_pipeline.errors import RisError


def test_names_stay_in_their_folder(tmp_path):
    assert resolve_inside(tmp_path, "a/b.jpg", "") == tmp_path / "a" / "b.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "a/../../b.jpg",
        "/etc/passwd",
        "..\\a.jpg",
        "C:\\a.jpg",
        "C:a.jpg",
        "\\\\host\\a",
        "..",
        "",
        None,
        3,
        "a\0b",
    ],
)
def test_names_that_lead_out_are_refused(name, tmp_path):
    with pytest.raises(RisError, match="instances: image 3: "):
        resolve_inside(tmp_path, name, "instances: image 3")


@given(st.text())
def test_no_name_leads_out(name):
    folder = Path("/data/images")
    try:
        path = resolve_inside(folder, name, "")
    except RisError:
        return
    assert path.resolve().is_relative_to(folder)


def test_json_errors_name_the_file(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(RisError, match=r"a\.json cannot be read"):
        load_json(path)
    for content in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(RisError, match=r"a\.json is not valid JSON"):
            load_json(path)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    """Whoever can put a link there may put the file there; image folders are often links to another disk."""
    (tmp_path / "elsewhere.jpg").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert resolve_inside(tmp_path / "images", "a.jpg", "").is_file()


def test_too_large_a_json_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 2**20)
    (tmp_path / "a.json").write_bytes(b" " * 2**20 + b"1")
    with pytest.raises(RisError, match=r"a\.json is larger than 1 MiB"):
        load_json(tmp_path / "a.json")


def test_control_characters_are_shown_not_sent():
    # ESC ] 0 ; sets a terminal's title; a newline would make a second line.
    with pytest.raises(RisError, match=r"^refs: '\\x1b\]0;x\\x07\\n' is not") as error:
        raise RisError("refs: '\x1b]0;x\x07\n' is not")
    assert str(error.value).isprintable()
