"""`ris status`: the artifacts of a data set as a tree of what reads what: fresh, stale, running or missing."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.find import list_artifacts, list_latest, load_artifact
from ris_pipeline.artifacts.freshness import Freshness
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import NO_ARTIFACTS, STAGES
from ris_pipeline.artifacts.locks import holder_of
from ris_pipeline.config import CONFIGS
from ris_pipeline.errors import RisError
from ris_pipeline.process.units import format_duration, format_size
from stages.common import command_line, data_digest, images_digest, resolve_config
from stages.options import StageOptions, align, card_of, emit
from stages.verify import Damages, find_damages
from stages.verify import repair as mend

HEADER = ("artifact", "state", "finished", "time", "size", "digest", "why")
READ_FROM = {"responses": "step1", "pseudolabels": "responses", "step2": "pseudolabels"}  # where no manifest says it


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tree."""

    artifact: str  # stage, or stage/label
    state: str  # fresh, stale, damaged, running, partial or missing
    finished: str = ""
    seconds: float | None = None
    bytes: int | None = None
    path: str = ""
    why: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()  # names of artifacts

    @property
    def stage(self) -> str:
        """The stage's name, without the label."""
        return self.artifact.partition("/")[0]

    def cells(self, branch: str) -> list[str]:
        """The fields as text behind the `branch` of the tree, at most three reasons of `why`."""
        seconds = "" if self.seconds is None else format_duration(self.seconds)
        size = "" if self.bytes is None else format_size(self.bytes)
        more = [f"and {len(self.why) - 3} more"] if len(self.why) > 3 else []
        why = "; ".join([*self.why[:3], *more])
        digest = Path(self.path).name.removesuffix(".partial")
        return [branch + self.artifact, self.state, self.finished[:16], seconds, size, digest, why]


def run(options: StageOptions, *, verify: bool = False, repair: bool = False) -> None:
    """Prints a row per latest artifact, running or broken run and missing stage, below what it reads.

    `verify` reads every file of every artifact, `repair` also mends. RisError where something is damaged after that.
    """
    damages = find_damages(options) if verify or repair else {}
    if repair:
        damages = mend(options, damages)
    freshness = freshness_of(options)
    rows = [row for stage in STAGES for row in rows_of(options, stage, damages, freshness)]
    table = [HEADER, *(row.cells(branch) for branch, row in arrange(rows))]
    emit(options, align(table), [asdict(row) for row in rows])
    damaged = [row.path for row in rows if row.state == "damaged"]
    if damaged:
        remedy = "what can be mended is" if repair else "`ris status --repair` mends what can be"
        raise RisError(f"damaged: {', '.join(damaged)}; {remedy}")


def arrange(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The rows in the order of a tree, each below the last stage that it reads, with its branch drawn before it."""
    below: dict[int, list[Row]] = {}
    for row in rows:
        parent = _parent_of(row, rows)
        below.setdefault(id(parent) if parent else 0, []).append(row)

    def draw(key: int, indent: str) -> Iterator[tuple[str, Row]]:
        children = below.get(key, [])
        for row in children:
            is_last = row is children[-1]
            yield (indent + ("└─ " if is_last else "├─ ")) if key else "", row
            yield from draw(id(row), indent + (("   " if is_last else "│  ") if key else ""))

    return list(draw(0, ""))


def _parent_of(row: Row, rows: Sequence[Row]) -> Row | None:
    order = list(STAGES)
    read = [one for one in rows if one.artifact in row.reads and one is not row]
    if not read and not row.reads:  # without a manifest: where the stage usually stands
        usual = [one for one in rows if one.stage == READ_FROM.get(row.stage)]
        read = [one for one in usual if one.artifact in ("responses/train", "pseudolabels/refine")] or usual[:1]
    return max(read, key=lambda one: order.index(one.stage), default=None)


def rows_of(options: StageOptions, stage: str, damages: Damages, freshness: Freshness) -> list[Row]:
    """The rows of one stage: the latest artifacts, others where they are damaged, broken runs."""
    name = card_of(options).name
    rows = []
    latest = list_latest(options.runs, name, stage).values()
    for artifact in latest:
        damaged = damages.get(options.runs / name / stage / artifact.digest, [])
        changed = freshness.reasons(artifact)
        state = "damaged" if damaged else "stale" if changed else "fresh"
        manifest = artifact.manifest
        size, seconds = manifest["files"]["bytes"], manifest["timings"]["total"]
        path = str(options.runs / name / stage / artifact.digest)
        why = tuple(map(str, damaged)) or tuple(changed)
        reads = tuple(one for one in manifest["inputs"] if one not in NO_ARTIFACTS)
        rows.append(Row(artifact.name, state, manifest["finished"], seconds, size, path, why, reads))
    known = [artifact.digest for artifact in latest]
    for folder in list_artifacts(options.runs, name, stage):
        faults = tuple(map(str, damages.get(folder, ()))) or _manifest_fault(folder)
        if faults and folder.name not in known:
            rows.append(Row(stage, "damaged", path=str(folder), why=faults))
    for partial in sorted((options.runs / name / stage).glob("*.partial")):
        holder = holder_of(partial.with_suffix(".lock"))
        why = (
            (f"by {holder}",) if holder else (f"broken off; {command_line(options, STAGES[stage].command)} resumes it",)
        )
        rows.append(Row(stage, "running" if holder else "partial", path=str(partial), why=why))
    if rows or stage == "irnet":  # an IRNet is imported or not; nothing waits for it
        return rows
    return [Row(stage, "missing", why=(f"run: {command_line(options, STAGES[stage].command)}",))]


def _manifest_fault(folder: Path) -> tuple[str, ...]:
    try:
        load_artifact(folder)
        return ()
    except RisError as error:
        return (str(error),)


def freshness_of(options: StageOptions) -> Freshness:
    """Return what judges the artifacts of the data set; the annotations are read once."""

    @functools.cache
    def digest_data() -> str:
        return data_digest(options)

    @functools.cache
    def digest_images(split: str) -> str:
        return images_digest(options, split)

    def configure(artifact: Artifact) -> dict[str, Any] | None:
        stage = artifact.manifest["stage"]
        if stage not in CONFIGS:
            return None
        own = {
            key: value for key, value in artifact.manifest["flags"].items() if key in artifact.manifest["configuration"]
        }
        # Settings of a --config or --set of then are no reason; those of now are compared.
        chosen = {} if options.config or options.set else artifact.manifest.get("chosen", {})
        return asdict(resolve_config(options, CONFIGS[stage], stage, **{**chosen, **own}))

    return Freshness(options.runs, card_of(options).name, digest_data, digest_images, configure)
