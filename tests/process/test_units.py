import pytest

from ris_pipeline.process.units import format_duration, format_size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (7.46, "7.5 s"), (75, "1 min 15 s"), (3599.6, "1 h 0 min"), (90_300, "25 h 5 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(12_460, "12.5 kB"), (100_000, "0.1 MB"), (1_500_000, "1.5 MB"), (13_510_573_713, "13.5 GB")]
)
def test_sizes(n_bytes, text):
    assert format_size(n_bytes) == text
