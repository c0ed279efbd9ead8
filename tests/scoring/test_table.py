"""Scores as text, JSON and CSV."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ris_pipeline.errors import RisError
from ris_pipeline.scoring import table
from ris_pipeline.scoring.metrics import Estimate, Outcome

POINT_IT = Estimate(value=62.345, ci_low=60.5, ci_high=64.14, n_refs=100, n_expressions=1234)
MIOU = Estimate(value=30.0, ci_low=29.0, ci_high=31.0, n_refs=100, n_expressions=1234)
ROWS = [
    table.ScoreRow("step1", "val", {"pointit": POINT_IT}),
    table.ScoreRow("step2", "val", {"pointit": POINT_IT, "miou": MIOU}),
]

maybe_bool = st.none() | st.booleans()
maybe_count = st.none() | st.integers(0, 10**7)
outcomes = st.builds(
    Outcome,
    ref_id=st.integers(0, 2**40),
    sent_id=st.integers(0, 2**40),
    weight=st.integers(1, 9),
    point_it=maybe_bool,
    point_m=maybe_bool,
    intersection=maybe_count,
    union=maybe_count,
    box_iou=st.none() | st.floats(0, 1),
)


def test_format_estimate():
    assert table.format_estimate(POINT_IT) == "62.3 [60.5, 64.1]"


def test_table_shows_only_metrics_that_a_row_has():
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table.build_table(ROWS, title="shapes"))
    lines = capture.get().splitlines()
    header = next(line for line in lines if "scored" in line)
    assert "PointIt" in header
    assert "mIoU" in header
    assert "oIoU" not in header
    assert "Prec" not in header
    step1 = next(line for line in lines if "step1" in line)
    assert "1,234" in step1
    assert "62.3 [60.5, 64.1]" in step1
    assert "–" in step1
    assert "30.0 [29.0, 31.0]" in next(line for line in lines if "step2" in line)


def test_rows_to_json():
    (first, second) = json.loads(json.dumps(table.rows_to_json(ROWS)))
    assert (first["name"], first["split"], list(first["metrics"])) == ("step1", "val", ["pointit"])
    assert second["metrics"]["miou"] == {
        "value": 30.0,
        "ci_low": 29.0,
        "ci_high": 31.0,
        "n_refs": 100,
        "n_expressions": 1234,
    }


def test_csv_line(tmp_path):
    table.save_outcomes(tmp_path / "sentences.csv", [Outcome(3, 31, 2, True, None, None, None, 0.25)])
    header, line = (tmp_path / "sentences.csv").read_text().splitlines()
    assert header == "ref_id,sent_id,weight,point_it,point_m,intersection,union,box_iou"
    assert line == "3,31,2,1,,,,0.25"


@given(st.lists(outcomes, max_size=5))
def test_csv_gives_back_what_was_saved(tmp_path_factory, saved):
    path = tmp_path_factory.mktemp("csv") / "sentences.csv"
    table.save_outcomes(path, saved)
    loaded = table.load_outcomes(path)
    assert loaded == saved
    assert [type(o.point_it) for o in loaded] == [type(o.point_it) for o in saved]


def test_csv_errors_name_the_file_and_the_line(tmp_path):
    path = tmp_path / "sentences.csv"
    with pytest.raises(RisError, match=r"sentences\.csv.*ris score"):
        table.load_outcomes(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RisError, match="columns"):
        table.load_outcomes(path)
    table.save_outcomes(path, [Outcome(3, 31, 2, True, None, None, None, 0.25)])
    path.write_text(path.read_text() + "4,x,1,,,,,\n")
    with pytest.raises(RisError, match="line 3"):
        table.load_outcomes(path)
    path.write_text(path.read_text().replace("4,x,1,,,,,", "4,1"))
    with pytest.raises(RisError, match="line 3"):
        table.load_outcomes(path)
