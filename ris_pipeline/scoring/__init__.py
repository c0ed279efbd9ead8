"""Scores of response maps and masks against ground truth, with confidence intervals."""

from ris_pipeline.scoring.metrics import (
    METRICS,
    Estimate,
    Outcome,
    require_metric,
    score_expression,
    summarise,
    summarise_difference,
)

__all__ = [
    "METRICS",
    "Estimate",
    "Outcome",
    "require_metric",
    "score_expression",
    "summarise",
    "summarise_difference",
]
