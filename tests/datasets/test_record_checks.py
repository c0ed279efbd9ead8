"""What a record must be to be used; the readers' own tests have the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ris_pipeline.datasets.record_checks import parse_box
from ris_pipeline.errors import RisError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0, 1], "four numbers"),
        ("0 0 1 1", "four numbers"),
        ([0, 0, 1, None], "four numbers"),
        ([0, 0, 1, True], "four numbers"),
        ([0, 0, 1, float("inf")], "four numbers"),
        ([5, 0, 4, 1], "ends before it begins"),
        ([0, 5, 1, 4], "ends before it begins"),
        ([0, 0, 22, 5], "outside the image of 20×10"),
        ([0, 0, 20, 12], "outside the image"),
        ([-2, 0, 3, 3], "outside the image"),
    ],
)
def test_faulty_boxes_name_their_place(values, message):
    with pytest.raises(RisError, match=r"f\.json: ref 3, image a\.jpg: the box.*" + message):
        parse_box(values, (10, 20), "f.json: ref 3, image a.jpg")


@given(
    st.floats(0, 20).flatmap(lambda x: st.tuples(st.just(x), st.floats(x, 20))),
    st.floats(0, 10).flatmap(lambda y: st.tuples(st.just(y), st.floats(y, 10))),
)
def test_boxes_inside_the_image_are_kept_as_they_are(xs, ys):
    box = (xs[0], ys[0], xs[1], ys[1])
    assert parse_box(list(box), (10, 20), "") == box
    assert parse_box(list(box), None, "") == box
