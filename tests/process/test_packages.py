"""The version of a package under the names of its builds."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from ris_pipeline.process.packages import OPENCV, find_version


def test_a_package():
    assert find_version("numpy") == version("numpy")


def test_a_package_that_is_not_installed():
    assert find_version("nonesuch-package") is None


@pytest.mark.parametrize("installed", OPENCV)
def test_any_build_of_opencv_counts(tmp_path, monkeypatch, installed):
    folder = tmp_path / f"{installed.replace('-', '_')}-5.6.7.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {installed}\nVersion: 5.6.7\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert find_version("opencv-python") == "5.6.7"
