"""Scores of one row on one split, as scores.json holds them, beside the paper's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import SCORES
from ris_pipeline.scoring.metrics import Estimate
from ris_pipeline.scoring.paper import paper_figure
from ris_pipeline.scoring.rows import STORED_ORACLE, Row, Tier, find_row


@dataclass(frozen=True, slots=True)
class Score:
    """One row of the score table on one split."""

    row: Row
    split: str
    n_sentences: int
    metrics: Mapping[str, Estimate]
    paper: Mapping[str, float] = field(default_factory=dict)  # percent; empty where the paper prints nothing
    partial: Mapping[str, int] | None = None  # sentences and expected, where the data hold a part of the split
    record: Mapping[str, Any] = field(default_factory=dict)  # all that scores.json holds
    path: str = ""
    tier: Tier = "text"  # the supervision behind what was scored
    stale: Sequence[str] = ()  # reasons

    def to_json(self) -> dict[str, Any]:
        """Return scores.json with the paper's figures, the artifact's path, and why it is stale where it is."""
        return {
            **self.record,
            "scored": self.row.name,
            "metrics": {name: asdict(estimate) for name, estimate in self.metrics.items()},
            "paper": dict(self.paper),
            "supervision": self.tier,
            "path": self.path,
            **({"stale": list(self.stale)} if self.stale else {}),
        }


def read_score(artifact: Artifact) -> Score:
    """Return the score in an artifact; a part of a split has no figures of the paper to stand beside."""
    record: dict[str, Any] = json.loads((artifact.path / SCORES).read_text(encoding="utf-8"))
    row, split, part = find_row(record["scored"]), record["split"], record.get("partial")
    figures = {name: paper_figure(record["dataset"], split, row.paper, name) for name in record["metrics"]}
    return Score(
        row=row,
        split=split,
        n_sentences=record["sentences"],
        metrics={name: Estimate(**estimate) for name, estimate in record["metrics"].items()},
        paper={name: figure for name, figure in figures.items() if figure is not None and not part},
        partial=part,
        record=record,
        path=str(artifact.path),
        tier=record.get("supervision", row.tier),  # which older artifacts do not say
    )


def add_stored_oracle(scores: Sequence[Score], oracle: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Score]:
    """Return the scores, and behind Step-2's the oracle's where it was not made here.

    `oracle`: {split: {metric: (value, low, high)}} as a card keeps it, of whole splits.
    """
    made = {score.split for score in scores if score.row.name == "step2-oracle"}
    shown = []
    for score in scores:
        shown.append(score)
        stored = oracle.get(score.split, {})
        if score.row.name == "step2" and stored and not score.partial and score.split not in made:
            n_refs = max((estimate.n_refs for estimate in score.metrics.values()), default=0)
            metrics = {
                name: Estimate(value, low, high, n_refs, score.n_sentences)
                for name, (value, low, high) in stored.items()
            }
            shown.append(
                replace(score, row=STORED_ORACLE, metrics=metrics, paper={}, path="", tier=STORED_ORACLE.tier, stale=())
            )
    return shown
