"""What the report says of each artifact; without heavy imports, to see quickly that nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ris_pipeline.artifacts.find import list_latest
from ris_pipeline.artifacts.freshness import Freshness
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import STAGES

_OPTIONAL = ("clip", "irnet", "report")  # stages that a report need not name where they have not run


@dataclass(frozen=True, slots=True)
class StageRow:
    """An artifact, or a stage that has none, in the table of stages."""

    name: str
    state: str  # fresh, stale, missing
    why: str
    finished: str = ""
    seconds: float | None = None
    n_bytes: int | None = None
    digest: str = ""
    reads: tuple[str, ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 0  # how many artifacts lie before it on its longest way


def list_stages(freshness: Freshness, command_line: Callable[[str], str]) -> list[StageRow]:
    """Return a row per latest artifact of a data set, and one for each stage that has none.

    `command_line` returns a command as it has to be typed for the data set.
    """
    rows: list[StageRow] = []
    for stage in STAGES:
        found = list_latest(freshness.runs, freshness.dataset, stage) if stage != "report" else {}
        rows += [_row_of(artifact, freshness.reasons(artifact)) for artifact in found.values()]
        if not found and stage not in _OPTIONAL:
            rows.append(StageRow(stage, "missing", f"run: {command_line(STAGES[stage].command)}"))
    depths: dict[str, int] = {}
    for row in rows:  # STAGES has each stage behind those that it reads
        depths[row.name] = max((depths[name] + 1 for name in row.reads if name in depths), default=0)
    return [replace(row, depth=depths[row.name]) for row in rows]


def _row_of(artifact: Artifact, reasons: Sequence[str]) -> StageRow:
    manifest = artifact.manifest
    return StageRow(
        name=artifact.name,
        state="stale" if reasons else "fresh",
        why="; ".join(reasons),
        finished=manifest["finished"],
        seconds=manifest["timings"]["total"],
        n_bytes=manifest["files"]["bytes"],
        digest=artifact.digest,
        reads=tuple(manifest["inputs"]),
        configuration=manifest["configuration"],
    )
