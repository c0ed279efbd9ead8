"""Differences of two scores against sums done by hand."""

import pytest

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import OUTCOMES
from ris_pipeline.errors import RisError
from ris_pipeline.scoring.compare import compare_scores
from ris_pipeline.scoring.metrics import Outcome
from ris_pipeline.scoring.outcomes import save_outcomes


def make(folder, scored: str, hits: list[int], box_iou: float | None = None, ref_ids: range = range(4)) -> Artifact:
    folder.mkdir()
    outcomes = [
        Outcome(ref_id, ref_id, 1, bool(hit), None, None, None, box_iou)
        for ref_id, hit in zip(ref_ids, hits, strict=True)
    ]
    save_outcomes(folder / OUTCOMES, outcomes)
    return Artifact(folder, {"flags": {"scored": scored, "split": "val"}})


def test_refs_are_paired(tmp_path):
    first = make(tmp_path / "a", "step1", [1, 0, 0, 0])
    second = make(tmp_path / "b", "step2", [1, 1, 1, 1], box_iou=0.5)
    (found,) = compare_scores(first, second, ["pointit", "box_iou"], 200, 0)  # boxes: the second has them only
    assert (found.scored, found.split, found.metric, found.n_refs) == ("step1 → step2", "val", "pointit", 4)
    assert (found.a, found.b, found.difference) == (25, 100, 75)
    assert 0 <= found.ci_low < 75 < found.ci_high <= 100
    assert compare_scores(first, first, ["pointit"], 200, 0)[0].ci_high == 0  # paired: it differs from itself nowhere


def test_other_refs_cannot_be_paired(tmp_path):
    first, second = make(tmp_path / "a", "step1", [1] * 4), make(tmp_path / "b", "step1", [1] * 4, ref_ids=range(1, 5))
    with pytest.raises(RisError, match="cannot be paired: 2 refs"):
        compare_scores(first, second, ["pointit"], 20, 0)
