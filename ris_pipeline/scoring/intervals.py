"""Confidence intervals by the bootstrap over refs.

The sentences of one ref describe the same object and share most of their luck, so they are not
independent trials: a resample draws whole refs, each with all its sentences.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COVERAGE = 0.95
_COUNTS_IN_MEMORY = 2_000_000  # resample counts held at once: 16 MB, however many refs there are


def compute_replicates(numerators: Floats, denominators: Floats, n_bootstrap: int, seed: int) -> Floats:
    """Return float64 (n_bootstrap, M): the M ratios Σ numerator / Σ denominator of each resample of the refs.

    `numerators`, `denominators`: float64 (R, M), the sums over one ref's sentences of each of M metrics.
    Resample b consists of the refs `default_rng(seed).integers(R, size=(n_bootstrap, R))[b]`, so two calls
    with equal R and seed draw the same refs: their replicates may be subtracted. A resample that holds no
    ref with a denominator gives NaN.
    """
    n_refs = len(numerators)
    rng = np.random.default_rng(seed)
    sums = np.concatenate([numerators, denominators], axis=1)
    rows_at_once = max(1, _COUNTS_IN_MEMORY // n_refs)
    replicates = np.empty((n_bootstrap, numerators.shape[1]))
    for start in range(0, n_bootstrap, rows_at_once):
        n_rows = min(rows_at_once, n_bootstrap - start)
        drawn = rng.integers(n_refs, size=(n_rows, n_refs)) + n_refs * np.arange(n_rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n_rows * n_refs).reshape(n_rows, n_refs)
        top, bottom = np.split(counts.astype(np.float64) @ sums, 2, axis=1)
        missing = np.full_like(top, np.nan)
        replicates[start : start + n_rows] = np.divide(top, bottom, out=missing, where=bottom > 0)
    return replicates


def percentile_interval(replicates: Floats) -> tuple[Floats, Floats]:
    """Return the float64 (M,) ends of the central 95 % of replicates (n_bootstrap, M), NaN left out."""
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.nanpercentile(replicates, [tail, 100 - tail], axis=0)
    return low, high
