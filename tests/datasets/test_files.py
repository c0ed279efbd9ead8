from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ris_pipeline.datasets.files import load_json, resolve_inside
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
