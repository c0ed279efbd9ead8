"""Progress as lines and as a bar, its pace, and what a resumed training tells."""

import dataclasses

import pytest

from stages import progress as module
from stages.progress import progress, report_steps


def test_progress_in_lines(tiny, capsys, monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0, 13.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress(tiny, "step1", total=8, done=4) as advance:
        for loss in (4.0, 3.0, 2.0, 1.0):
            advance(loss=loss)
    # After 11 s two of four steps are done; the last step always makes a line.
    assert capsys.readouterr().err.splitlines() == [
        "step1 6/8, 0.182/s, 11 s left loss 3",
        "step1 8/8, 0.308/s, 0 s left loss 1",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(119.4, "119 s"), (2700.0, "45 min"), (27000.0, "7.5 h")])
def test_the_time_that_is_left(seconds, text):
    assert module._format_seconds(seconds) == text


def test_progress_as_a_bar(tiny, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module._Pace, "rate", lambda self, now: 0.5)  # rich looks at the clock, too
    with progress(tiny, "step1", total=8, done=4) as advance:
        advance(2, loss=3.0)
        advance(2, loss=1.0)
    last = [line for line in capsys.readouterr().err.splitlines() if "8/8" in line][-1]
    assert "step1 " in last
    assert "0.5/s loss 1" in last


def test_progress_keeps_quiet(tiny, capsys):
    with progress(dataclasses.replace(tiny, quiet=True), "step1", total=1) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_steps_are_told_from_where_a_run_goes_on():
    told = []
    report = report_steps(lambda n, earlier, **values: told.append((n, earlier, values)))
    report(7, {"loss": 1.0})
    report(8, {"loss": 0.5})
    assert told == [(1, 7, {"loss": 1.0}), (1, 0, {"loss": 0.5})]


def test_earlier_steps_do_not_count_for_the_pace(tiny, capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress(tiny, "step1", total=1012) as advance:
        report = report_steps(advance)
        report(1000, {})
        report(1001, {})
    assert capsys.readouterr().err == "step1 1002/1012, 0.182/s, 55 s left\n"  # two steps in 11 s, ten to come
