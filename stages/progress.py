"""Progress of a command: a bar in a terminal, plain lines elsewhere, with rate and time left."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ris_pipeline.process import signals as stops
from stages.options import StageOptions, is_silent

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(options: StageOptions, label: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A function `advance(n=1, earlier=0, **values)` that shows `n` more of `total` steps done, and the values.

    `done` steps are of an earlier run, and so are `earlier` ones, where that comes out only later. A bar on stderr
    in a terminal, elsewhere a line every ten seconds, nothing with --quiet.
    """
    with _shown(options, label, total, done) as show_step:

        def advance(n: int = 1, earlier: int = 0, **values: float) -> None:
            show_step(n, earlier, **values)
            stops.check()

        yield advance


@contextmanager
def _shown(options: StageOptions, label: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    if options.quiet or is_silent():
        yield lambda n, earlier, **values: None
    elif sys.stderr.isatty():
        with _bar(label, total, done) as advance:
            yield advance
    else:
        yield _Lines(label, total, done)


def report_steps(advance: Callable[..., None]) -> Callable[[int, dict[str, float]], None]:
    """A function report(step, values) that tells `advance` of one step more, and at first of an earlier run's."""
    n_shown = 0

    def report(step: int, values: dict[str, float]) -> None:
        nonlocal n_shown
        advance(1, step - n_shown, **values)
        n_shown = step + 1

    return report


@contextmanager
def _bar(label: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[values]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done, values="")
        pace = _Pace(done)

        def advance(n: int, earlier: int, **values: float) -> None:
            pace.add(n, earlier)
            bar.update(task, advance=n + earlier, values=f"{pace.rate(time.monotonic()):.3g}/s {_format(values)}")

        yield advance


class _Pace:
    """How fast a run gets on: what an earlier run had done does not count."""

    def __init__(self, done: int) -> None:
        self.done, self.resumed_at = done, done
        self.start = time.monotonic()

    def add(self, n: int, earlier: int) -> None:
        """Count n steps of this run, and `earlier` ones that turn out to have been done before it."""
        self.done += n + earlier
        self.resumed_at += earlier

    def rate(self, now: float) -> float:
        """Steps a second."""
        return (self.done - self.resumed_at) / max(now - self.start, 1e-9)


class _Lines:
    """Progress as lines: at most one every ten seconds, and one at the end."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.pace = label, total, _Pace(done)
        self.last = self.pace.start

    def __call__(self, n: int, earlier: int, **values: float) -> None:
        self.pace.add(n, earlier)
        done, now = self.pace.done, time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES and done < self.total:
            return
        self.last = now
        rate = self.pace.rate(now)
        left = _format_seconds((self.total - done) / rate if rate else float("inf"))
        state = f"{self.label} {done}/{self.total}, {rate:.3g}/s, {left} left"
        print(f"{state} {_format(values)}".rstrip(), file=sys.stderr, flush=True)


def _format_seconds(seconds: float) -> str:
    """Seconds as one would say it: 90 s, 45 min, 7.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _format(values: Mapping[str, float]) -> str:
    return " ".join(f"{key} {value:.4g}" for key, value in values.items())
