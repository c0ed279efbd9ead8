"""Remarks and progress of a run, on stderr. Its caller prints the results."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from ris_pipeline.process.signals import check

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]  # advance(n): n more are done


def is_silent() -> bool:
    """Return whether this is a process of torchrun other than the first, which prints for all."""
    return os.environ.get("RANK", "0") != "0"


class Console:
    """Prints remarks and progress; nothing where it is quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.is_quiet = quiet or is_silent()

    def say(self, text: str) -> None:
        """Print a remark."""
        if not self.is_quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """Yield `advance(n=1, step=None, **values)`, which shows `n` more of `total` steps, and the values.

        `done`: steps of an earlier run, which do not count in the rate; if that number is known only later, pass the
        number of steps done before this one as `step`. A terminal gets a bar, anything else a line every ten seconds.
        """
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = RichConsole(stderr=True)
        has_bar = console.is_interactive and not self.is_quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        state = TextColumn("{task.fields[state]}")
        with Progress(*columns, state, console=console, disable=not has_bar, speed_estimate_period=3600) as bar:
            bar.add_task(label, total=total, completed=done, state="")
            (task,) = bar.tasks
            printed_at = bar.get_time()

            def advance(n: int = 1, step: int | None = None, **values: float) -> None:
                nonlocal printed_at
                if step not in (None, task.completed):
                    bar.reset(task.id, completed=step)
                bar.update(task.id, advance=n)
                words = [f"{task.speed:.3g}/s"] if task.speed else []
                words += [f"{key} {value:.4g}" for key, value in values.items()]
                bar.update(task.id, state=" ".join(words))
                now = bar.get_time()
                if not (has_bar or self.is_quiet) and (task.finished or now - printed_at >= SECONDS_BETWEEN_LINES):
                    printed_at = now
                    left = [f"{timedelta(seconds=task.time_remaining)} left"] if task.time_remaining else []
                    line = ", ".join([f"{label} {task.completed:.0f}/{total}", *left, task.fields["state"]])
                    print(line.removesuffix(", "), file=sys.stderr, flush=True)
                check()

            yield advance


def report_steps(advance: Callable[..., None]) -> Callable[[int, dict[str, float]], None]:
    """Return a function report(step, values) that tells `advance` of a training's step."""
    return lambda step, values: advance(step=step, **values)
