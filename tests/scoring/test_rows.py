"""Which rows there are for a split, and what they are read from."""

from functools import partial

import pytest

from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.scoring.rows import ROWS, Row, find_improvement, find_row


@pytest.mark.parametrize(
    ("split", "chosen", "names"),
    [
        ("train", False, ["chance", "step1", "prms", "pseudo-plain", "pseudo-refined", "pseudo-proposals"]),
        (
            "train",
            True,
            [
                "chance",
                "step1",
                "prms",
                "pseudo-plain",
                "pseudo-refined",
                "pseudo-proposals",
                "step2",
                "step2-oracle",
                "step2-proposals",
            ],
        ),
        ("val", False, ["chance", "step1", "prms", "step2", "step2-oracle", "step2-proposals"]),
    ],
)
def test_rows_of_a_split(split, chosen, names):
    assert [row.name for row in ROWS.values() if row.applies_to(split, chosen=chosen)] == names


def make(runs, stage: str, configuration: dict, **flags: str | bool) -> str:
    """The digest of an empty artifact."""
    request = Request(runs, "toy", stage, configuration, {}, flags)
    with publish(request):
        pass
    return request.path.name


def test_a_row_is_read_from_the_artifact_of_its_own_flags(tmp_path):
    ours = make(tmp_path, "responses", {"prms": True}, split="val")
    theirs = make(tmp_path, "responses", {"prms": False}, method="amr", split="val")
    plain = make(tmp_path, "pseudolabels", {}, refine=False)
    make(tmp_path, "pseudolabels", {}, refine=True)
    amr = Row(name="a", title="A", label="A", stage="a", kind="maps", source="responses", flags={"method": "amr"})
    for row, expected in ((find_row("step1"), ours), (amr, theirs), (find_row("pseudo-plain"), plain)):
        source = row.find_source(partial(find_latest, tmp_path, "toy"), "val")
        assert source is not None
        assert source.digest == expected
    assert find_row("chance").find_source(partial(find_latest, tmp_path, "toy"), "val") is None
    assert find_row("step2").find_source(partial(find_latest, tmp_path, "toy"), "val") is None


def test_prms_needs_responses_with_its_choice(tmp_path):
    make(tmp_path, "responses", {"prms": False}, split="val")
    assert find_row("prms").find_source(partial(find_latest, tmp_path, "toy"), "val") is None
    assert find_row("step1").find_source(partial(find_latest, tmp_path, "toy"), "val") is not None


def test_improvement_is_by_refinement_and_else_by_step2():
    assert find_improvement(ROWS) == ("pseudo-plain", "pseudo-refined")
    assert find_improvement({"step1", "prms", "pseudo-refined", "step2"}) == ("prms", "pseudo-refined")
    assert find_improvement({"step1", "prms", "step2"}) == ("step1", "step2")
    assert find_improvement({"prms", "step2"}) is None


def test_a_row_that_is_not_here_is_called_by_its_name():
    row = find_row("of-another-time")
    assert (row.title, row.label, row.tile) == ("of-another-time", "of-another-time", "of-another-time")
    assert "of-another-time" not in ROWS


def test_a_row_with_options_of_test_time_is_marked_and_has_no_figure_of_the_paper():
    plain, marked = find_row("step2"), find_row("step2+mirror+crf")
    assert (marked.name, marked.kind, marked.source, marked.flags) == (
        "step2+mirror+crf", plain.kind, plain.source, plain.flags,
    )  # fmt: skip
    assert (plain.paper, marked.paper, marked.tile) == ("Step-2", "", "")
    assert "mirror" in marked.title
    assert "CRF" in marked.title
