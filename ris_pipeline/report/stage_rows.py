"""What the report says of each artifact; without heavy imports, to see quickly that nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
