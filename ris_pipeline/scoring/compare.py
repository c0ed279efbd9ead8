"""Two scores of one split against each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import OUTCOMES
from ris_pipeline.scoring.metrics import summarise, summarise_difference
from ris_pipeline.scoring.outcomes import load_outcomes


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two scores: each in percent, and second − first in points with its 95 % interval."""

    scored: str  # the row, or "first → second" where they are of two rows
    split: str
    metric: str
    a: float
    b: float
    difference: float
    ci_low: float
    ci_high: float
    n_refs: int


def compare_scores(a: Artifact, b: Artifact, metrics: Iterable[str], n_bootstrap: int, seed: int) -> list[Difference]:
    """Return the differences of two artifacts of scores by paired bootstrap over their refs.

    Of the `metrics` those that both have. Raises RisError where the two are of other refs.
    """
    outcomes_a, outcomes_b = (load_outcomes(artifact.path / OUTCOMES) for artifact in (a, b))
    values_a, values_b = (summarise(outcomes, n_bootstrap=1) for outcomes in (outcomes_a, outcomes_b))
    rows = dict.fromkeys(str(artifact.manifest["flags"]["scored"]) for artifact in (a, b))
    differences = []
    for metric in metrics:
        if metric in values_a and metric in values_b:
            estimate = summarise_difference(outcomes_b, outcomes_a, metric, n_bootstrap, seed)
            differences.append(
                Difference(
                    " → ".join(rows), str(a.manifest["flags"]["split"]), metric, values_a[metric].value,
                    values_b[metric].value, estimate.value, estimate.ci_low, estimate.ci_high, estimate.n_refs,
                )
            )  # fmt: skip
    return differences
