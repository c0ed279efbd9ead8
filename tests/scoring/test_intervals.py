"""The vectorised bootstrap against plain loops and against the binomial."""

import numpy as np
import pytest

from ris_pipeline.scoring import intervals


def plain_replicates(numerators, denominators, n_bootstrap, seed):
    """One ratio at a time, in Python's own arithmetic, from the resamples that the docstring promises."""
    n_refs = len(numerators)
    drawn = np.random.default_rng(seed).integers(n_refs, size=(n_bootstrap, n_refs)).tolist()
    replicates = []
    for sample in drawn:
        row = []
        for metric in range(numerators.shape[1]):
            top = sum(float(numerators[ref, metric]) for ref in sample)
            bottom = sum(float(denominators[ref, metric]) for ref in sample)
            row.append(top / bottom if bottom > 0 else float("nan"))
        replicates.append(row)
    return np.array(replicates)


@pytest.fixture
def sums():
    rng = np.random.default_rng(5)
    denominators = rng.integers(1, 5, size=(13, 3)).astype(np.float64)
    return denominators * rng.random((13, 3)), denominators


def test_replicates_equal_the_plain_loop(sums):
    np.testing.assert_allclose(
        intervals.compute_replicates(*sums, 40, seed=3), plain_replicates(*sums, 40, seed=3), rtol=1e-12
    )


@pytest.mark.parametrize("counts_in_memory", [1, 13, 100, 13 * 40])
def test_replicates_do_not_depend_on_how_many_fit_in_memory(sums, counts_in_memory, monkeypatch):
    expected = plain_replicates(*sums, 40, seed=3)
    monkeypatch.setattr(intervals, "_COUNTS_IN_MEMORY", counts_in_memory)
    np.testing.assert_allclose(intervals.compute_replicates(*sums, 40, seed=3), expected, rtol=1e-12)


def test_resample_without_ground_truth_is_nan_and_left_out():
    numerators, denominators = np.array([[0.0], [3.0]]), np.array([[0.0], [4.0]])
    replicates = intervals.compute_replicates(numerators, denominators, 50, seed=0)
    np.testing.assert_array_equal(replicates, plain_replicates(numerators, denominators, 50, seed=0))
    assert np.isnan(replicates).any()
    low, high = intervals.percentile_interval(replicates)
    assert (low[0], high[0]) == (0.75, 0.75)


def test_interval_is_the_central_95_percent():
    low, high = intervals.percentile_interval(np.arange(1001.0)[:, None])
    assert (low[0], high[0]) == (pytest.approx(25.0), pytest.approx(975.0))


def test_interval_of_a_share_matches_the_binomial():
    hits = (np.arange(900) % 3 == 0).astype(np.float64)[:, None]
    low, high = intervals.percentile_interval(intervals.compute_replicates(hits, np.ones_like(hits), 2000, seed=1))
    half_width = 1.96 * np.sqrt(1 / 3 * 2 / 3 / 900)
    assert low[0] == pytest.approx(1 / 3 - half_width, abs=0.003)
    assert high[0] == pytest.approx(1 / 3 + half_width, abs=0.003)


def test_sentences_of_a_ref_are_drawn_together():
    """Nine refs of 100 equal sentences are nine trials, not 900: the interval is ten times as wide."""
    shares = np.array([[100.0]] * 3 + [[0.0]] * 6)
    replicates = intervals.compute_replicates(shares, np.full((9, 1), 100.0), 2000, seed=1)
    assert np.std(replicates) == pytest.approx(np.sqrt(1 / 3 * 2 / 3 / 9), rel=0.05)
