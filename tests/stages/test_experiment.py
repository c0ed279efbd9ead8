"""Which data sets `ris experiment` makes of a file."""

from __future__ import annotations

import pytest

from ris_pipeline.experiments.file import load_experiment
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


@pytest.mark.parametrize(("dataset", "folder"), [("shapes+", "shapes"), ("flickr30k-entities", "paper")])
def test_a_data_set_that_no_file_names_gets_the_rows_that_fit_it(tmp_path, dataset, folder):
    """The paper's encoders and channels do not fit the small CLIP of the embedded data sets."""
    places = {"data_root": tmp_path / "data", "runs": tmp_path / "runs"}
    for name in ("table1", "table4"):
        experiment, points = open_experiment(name, dataset, None, Output(quiet=True), places)
        rows = load_experiment(name, folder).rows
        assert [(row.name, row.set) for row in experiment.rows] == [(row.name, row.set) for row in rows]
        assert {point.dataset for point in points} == {dataset}
        assert f" on {dataset}: " in experiment.title
        assert not experiment.cost
