import json

import pytest

from ris_pipeline.errors import RisError
from ris_pipeline.report.curves import load_curves, summarise_curves


def write(path, *records):
    path.write_text("".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records))
    return path


def test_a_curve_per_loss(tmp_path):
    path = write(tmp_path / "m.jsonl", {"step": 0, "loss": 4, "cls": 1}, {"step": 1, "loss": 2.0, "cls": 0.5})
    curves = load_curves(path)
    assert {name: (steps.tolist(), values.tolist()) for name, (steps, values) in curves.items()} == {
        "loss": ([0, 1], [4, 2]),
        "cls": ([0, 1], [1, 0.5]),
    }


def test_a_resumed_run_counts_as_last_written(tmp_path):
    path = write(
        tmp_path / "m.jsonl", {"step": 0, "a": 3}, {"step": 1, "a": 9}, {"step": 1, "a": 2}, {"step": 2, "a": 1}
    )
    assert load_curves(path)["a"][1].tolist() == [3, 2, 1]


def test_what_is_no_finite_number_is_left_out(tmp_path):
    path = write(tmp_path / "m.jsonl", {"step": 0, "a": 3, "note": "x"}, '{"step": 1, "a": NaN}\n')
    curves = load_curves(path)
    assert list(curves) == ["a"]
    assert curves["a"][1].tolist() == [3]


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', '{"step": "x"}'])
def test_a_bad_line_is_named(tmp_path, line):
    path = write(tmp_path / "m.jsonl", {"step": 0, "loss": 4}, line)
    with pytest.raises(RisError, match=r"m\.jsonl: line 2"):
        load_curves(path)


def test_the_summary_says_the_ends(tmp_path):
    path = write(tmp_path / "m.jsonl", *({"step": k, "loss": 20 - k} for k in range(20)))
    assert summarise_curves(load_curves(path)) == "Means of the first and last tenth: loss 19.5 → 1.5."
