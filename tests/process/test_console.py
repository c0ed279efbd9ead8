"""Progress as lines and as a bar, and what a resumed training tells."""

from types import SimpleNamespace

import pytest

from ris_pipeline.process.console import Console, report_steps


@pytest.fixture
def clock(monkeypatch):
    """The clock that rich looks at; its `now` is in seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("rich.console.monotonic", lambda: clock.now)
    return clock


def test_progress_in_lines(capsys, clock):
    with Console().progress("step1", total=8, done=4) as advance:
        for clock.now, loss in ((4.0, 4.0), (11.0, 3.0), (12.0, 2.0), (13.0, 1.0)):
            advance(loss=loss)
    # One step in the 7 s since the first one, two to come; then three in 9 s. The last step always makes a line.
    assert capsys.readouterr().err.splitlines() == [
        "step1 6/8, 0:00:14 left, 0.143/s loss 3",
        "step1 8/8, 0.333/s loss 1",
    ]


def test_progress_as_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Console().progress("step1", total=8, done=4) as advance:
        advance(2, loss=3.0)
        advance(2, loss=1.0)
    last = [line for line in capsys.readouterr().err.splitlines() if "8/8" in line][-1]
    assert "step1 " in last
    assert "/s loss 1" in last


def test_progress_keeps_quiet(capsys):
    with Console(quiet=True).progress("step1", total=1) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_earlier_steps_do_not_count_in_the_rate(capsys, clock):
    with Console().progress("step1", total=1012) as advance:
        report = report_steps(advance)
        for clock.now, step in ((1.0, 1000), (11.0, 1001)):
            report(step, {"loss": 1.0})
    assert capsys.readouterr().err == "step1 1002/1012, 0:01:40 left, 0.1/s loss 1\n"  # ten steps to come
