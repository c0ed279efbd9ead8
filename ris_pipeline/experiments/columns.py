"""The rows of an experiment as the columns of a figure: what each of them answers to the same sentences."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.errors import RisError
from ris_pipeline.experiments.run import Point, looking
from ris_pipeline.report.sources import Sources
from ris_pipeline.scoring.rows import find_row


def find_columns(points: Sequence[Point], split: str | None) -> Sources:
    """Return what the points of one data set and seed made of a split, titled by their rows' names.

    `split` None: the first one of the first point. What is not made yet has an empty column that says so. Raises
    RisError for a split that no point is of, and where nothing is made.
    """
    first = points[0]
    chosen = first.splits[0] if split is None else split
    of_split = [point for point in points if chosen in point.splits]
    if not of_split:
        raise RisError(f"--split {split}: the experiment has columns of {', '.join(first.splits)} only")
    rows, shown = [], dict[tuple[str, str], Artifact]()
    for point in of_split:
        row = find_row(point.entry.scored)
        name = point.entry.name
        rows.append(replace(row, name=name, tile=name))
        with suppress(RisError):  # what is not made has no source
            if artifact := row.find_source(looking(point).context.look_up, chosen):
                shown[name, chosen] = artifact
    if not shown:
        raise RisError(f"{first.dataset} {chosen}: nothing of the experiment is made yet; run: ris experiment NAME")
    return Sources(splits=(chosen,), rows=tuple(rows), shown=shown, scored={}, trained={}, labels=())
