"""The per-sentence table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ris_pipeline.errors import RisError
from ris_pipeline.scoring.metrics import Outcome
from ris_pipeline.scoring.outcomes import load_outcomes, save_outcomes

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
    exists=st.booleans(),
)


def test_csv_line(tmp_path):
    save_outcomes(tmp_path / "sentences.csv", [Outcome(3, 31, 2, True, None, None, None, 0.25)])
    header, line = (tmp_path / "sentences.csv").read_text().splitlines()
    assert header == "ref_id,sent_id,weight,point_it,point_m,intersection,union,box_iou"
    assert line == "3,31,2,1,,,,0.25"


def test_csv_lines_with_a_sentence_about_nothing(tmp_path):
    there = Outcome(3, 31, 1, True, None, 5, 10, 0.25)
    saved = [there, Outcome(4, 40, 1, None, None, 0, 0, None, is_empty=True, exists=False)]
    save_outcomes(tmp_path / "sentences.csv", saved)
    header, first, second = (tmp_path / "sentences.csv").read_text().splitlines()
    assert header == "ref_id,sent_id,weight,point_it,point_m,intersection,union,box_iou,exists,is_empty"
    assert (first, second) == ("3,31,1,1,,5,10,0.25,1,0", "4,40,1,,,0,0,,0,1")
    assert [(o.exists, o.is_empty) for o in load_outcomes(tmp_path / "sentences.csv")] == [(True, False), (False, True)]


@given(st.lists(outcomes, max_size=5))
def test_csv_gives_back_what_was_saved(tmp_path_factory, saved):
    path = tmp_path_factory.mktemp("csv") / "sentences.csv"
    save_outcomes(path, saved)
    loaded = load_outcomes(path)
    assert loaded == saved
    assert [type(o.point_it) for o in loaded] == [type(o.point_it) for o in saved]


def test_csv_errors_name_the_file_and_the_line(tmp_path):
    path = tmp_path / "sentences.csv"
    with pytest.raises(RisError, match=r"sentences\.csv.*ris score"):
        load_outcomes(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RisError, match="columns"):
        load_outcomes(path)
    save_outcomes(path, [Outcome(3, 31, 2, True, None, None, None, 0.25)])
    path.write_text(path.read_text() + "4,x,1,,,,,\n")
    with pytest.raises(RisError, match="line 3"):
        load_outcomes(path)
    path.write_text(path.read_text().replace("4,x,1,,,,,", "4,1"))
    with pytest.raises(RisError, match="line 3"):
        load_outcomes(path)
