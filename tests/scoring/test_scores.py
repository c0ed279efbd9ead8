"""Scores read from an artifact, and the oracle's that a card keeps."""

import json

import pytest

from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.layout import SCORES
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.scoring.metrics import Estimate
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score, add_stored_oracle, read_score

MIOU = {"value": 33.5, "ci_low": 30.0, "ci_high": 37.0, "n_refs": 4, "n_expressions": 9}


@pytest.mark.parametrize(("partial", "paper"), [(None, {"miou": 33.33}), ({"sentences": 9, "expected": 60103}, {})])
def test_a_score_has_the_papers_figure_unless_it_is_of_a_part(tmp_path, partial, paper):
    record = {
        "dataset": "referit", "scored": "step1", "split": "test", "sentences": 9, "refs": 4, "partial": partial,
        "metrics": {"miou": MIOU},
    }  # fmt: skip
    request = Request(tmp_path, "referit", "scores", {}, {}, {"scored": "step1", "split": "test"})
    with publish(request) as work:
        (work.path / SCORES).write_text(json.dumps(record))
    score = read_score(find(request))
    assert (score.row.name, score.split, score.n_sentences) == ("step1", "test", 9)
    assert score.metrics == {"miou": Estimate(33.5, 30.0, 37.0, 4, 9)}
    assert score.paper == paper  # Table 2
    assert score.to_json() == {**record, "paper": paper, "supervision": "text", "path": score.path}


STEP2 = Score(find_row("step2"), "val", 9, {"miou": Estimate(57.0, 55.0, 59.0, 4, 9)}, {"miou": 40.0})
STORED = {"val": {"miou": (74.0, 72.0, 76.0)}}


def test_the_stored_oracle_stands_behind_step2():
    first, second = add_stored_oracle([STEP2], STORED)
    assert first == STEP2
    assert (second.row.name, second.split, second.n_sentences) == ("oracle, stored", "val", 9)
    assert second.metrics == {"miou": Estimate(74.0, 72.0, 76.0, 4, 9)}
    assert second.paper == {}


@pytest.mark.parametrize(
    "scores",
    [
        [STEP2, Score(find_row("step2-oracle"), "val", 9, {})],  # it was made here
        [Score(find_row("step2"), "testA", 9, {})],  # another split
        [Score(find_row("step1"), "val", 9, {})],
        [Score(find_row("step2"), "val", 9, {}, partial={"sentences": 9, "expected": 90})],
    ],
)
def test_elsewhere_the_stored_oracle_has_no_place(scores):
    assert add_stored_oracle(scores, STORED) == scores
