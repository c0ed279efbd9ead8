"""Making an experiment: the stages behind each row, by the chain's own functions, each artifact once.

A row with a seed and a data set is a *point*. What a point reads is made when it is asked for, from its own settings:
`supply` stands where the chain would look for the latest artifact. Two rows that share settings share the artifact.
Points that share their first training form a *group*: one process makes a group from its first point to its last, so
that no two wait for each other, and groups are what is spread over processes and machines.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ris_pipeline.artifacts.identity import Artifact, artifact_name
from ris_pipeline.artifacts.layout import METHOD, PROPOSALS, round_of
from ris_pipeline.chain.context import Context
from ris_pipeline.chain.pseudolabels import make_pseudolabels
from ris_pipeline.chain.responses import dump_responses
from ris_pipeline.chain.scores import score
from ris_pipeline.chain.train import train_step1, train_step2
from ris_pipeline.errors import BusyError, RisError
from ris_pipeline.experiments.file import Entry, Experiment
from ris_pipeline.methods import TRIS, find_method
from ris_pipeline.process.console import Console
from ris_pipeline.process.failures import explain_failure
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score

PAUSE = 2.0  # seconds between two looks at what another process is making


@dataclass(frozen=True)
class Point:
    """A row of an experiment on one data set with one seed, and the context that makes it."""

    entry: Entry
    dataset: str
    seed: int
    splits: Sequence[str]
    context: Context

    @property
    def title(self) -> str:
        """What it is called in a line on it."""
        return f"{self.entry.name}, {self.dataset}, seed {self.seed}"


@dataclass
class _Supply:
    """Gives what a stage of one point reads, and makes it where it is missing, unless the context is a dry run."""

    given: dict[str, Artifact | None] = field(default_factory=dict)  # by Artifact.name

    def __call__(self, context: Context, stage: str, **flags: Any) -> Artifact | None:
        name = artifact_name(stage, flags)
        if name not in self.given:
            self.given[name] = _make(context, stage, flags)
        return self.given[name]


def _make(context: Context, stage: str, flags: dict[str, Any]) -> Artifact | None:
    method = flags.get(METHOD, TRIS)
    if stage == "step1":
        return train_step1(context, method=method)
    if stage == "responses":
        return dump_responses(context, splits=[flags["split"]], method=method).get(flags["split"])
    if stage == "pseudolabels":
        if PROPOSALS in flags:
            raise RisError("an experiment has no folder of proposals: such rows are made by the commands")
        return make_pseudolabels(context, refine=flags.get("refine"), method=method, round=round_of(flags))
    labels = flags["labels"]
    return train_step2(
        context, oracle=labels == "true", proposals=labels == PROPOSALS, method=method, round=round_of(flags)
    )


def list_points(
    experiment: Experiment, open_dataset: Callable[[str], Context], datasets: Sequence[str], seeds: Sequence[int]
) -> list[Point]:
    """Return the points of an experiment; open_dataset(name) gives a data set's context with the user's settings."""
    points = []
    for dataset in datasets:
        shared = open_dataset(dataset)
        for entry in experiment.rows:
            settings = {f"{table}.{key}": value for table, own in entry.set.items() for key, value in own.items()}
            row = find_row(entry.scored)
            splits = [split for split in experiment.splits_of(dataset) if row.applies_to(split, chosen=True)]
            for seed in seeds:
                context = shared.vary(assignments={**shared.assignments, **settings}, seed=seed, supply=_Supply())
                points.append(Point(entry, dataset, seed, splits, context))
    return [point for point in points if point.splits]


def group_points(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points in groups that share no training, in their order."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        method = find_method(str(find_row(point.entry.scored).flags.get(METHOD, TRIS)))
        first = find_method(method.teacher) if method.teacher else method
        settings = asdict(point.context.resolve(first.config, first.table, beside=not first.trained))
        groups.setdefault(json.dumps([point.dataset, point.seed, first.name, settings]), []).append(point)
    return list(groups.values())


def measure(point: Point) -> dict[str, Score]:
    """Return {split: score} of a point, and make what is missing for it; RisError where a stage fails.

    In a dry run nothing is made, and what has no score yet is missing.
    """
    return {
        split: found for split in point.splits for found in score(point.context, splits=[split], row=point.entry.scored)
    }


def looking(point: Point, console: Console = Console(quiet=True)) -> Point:
    """Return the point with a context that makes nothing, and says what it would make on `console`."""
    return replace(point, context=point.context.vary(dry_run=True, console=console, supply=_Supply()))


class _Remarks(Console):
    """Keeps the remarks instead of printing them."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def explain(point: Point) -> str:
    """Return a line on the first stage that would run for the point, with the reason; "" where all is there."""
    remarks = _Remarks()
    with suppress(RisError):  # what follows the first that is missing has no source
        measure(looking(point, remarks))
    return next((line for line in remarks.lines if "would run" in line), "")


def read(point: Point) -> dict[str, Score]:
    """Return the scores of a point as far as they are there, without making anything."""
    found: dict[str, Score] = {}
    for split in point.splits:
        with suppress(RisError):  # what is not made has no source
            found |= measure(replace(looking(point), splits=[split]))
    return found


def make_points(points: Sequence[Point]) -> Iterator[tuple[Point, str]]:
    """Make the points, and yield each with what became of it: "there already", "made" or "failed: …".

    A point that fails stops no other. One of which another process makes a part comes later again.
    """
    waiting = deque(points)
    n_busy = 0
    while waiting:
        point = waiting.popleft()
        if len(read(point)) == len(point.splits):
            yield point, "there already"
            continue
        try:
            measure(point)
        except BusyError:
            waiting.append(replace(point, context=point.context.vary(supply=_Supply())))
            n_busy += 1
            if n_busy >= len(waiting):
                time.sleep(PAUSE)
                n_busy = 0
            continue
        except RisError as error:
            yield point, f"failed: {error}"
        except (OSError, MemoryError, RuntimeError) as error:
            yield point, f"failed: {explain_failure(error) or f'{type(error).__name__}: {error}'}"
        else:
            yield point, "made"
        n_busy = 0
