"""Which data sets `ris experiment` makes of a file."""

from __future__ import annotations

import pytest

from stages.console import Output
from stages.experiment import open_experiment

OWN = """
title = "two data sets"
columns = ["shapes/val miou", "shapes+/val miou"]
[[rows]]
name = "a"
scored = "step1"
"""


@pytest.mark.parametrize(
    ("dataset", "made"), [(None, ["shapes", "shapes+"]), ("shapes", ["shapes"]), ("shapes+", ["shapes+"])]
)
def test_of_an_own_file_the_data_set_that_is_asked_for(tmp_path, dataset, made):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    places = {"data_root": tmp_path / "data", "runs": tmp_path / "runs"}
    _, points = open_experiment(str(path), dataset, None, Output(quiet=True), places)
    assert [point.dataset for point in points] == made
