"""`ris status`: which artifacts of a data set are fresh, stale, broken off or missing."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts import STAGES, Artifact, differences, find_named, list_latest, load_artifact
from ris_pipeline.config import CONFIGS
from ris_pipeline.errors import RisError
from ris_pipeline.integrity import list_artifacts
from stages.common import StageOptions, card_of, data_digest, emit, resolve_config
from stages.verify import Damages, find_damages
from stages.verify import repair as mend


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    artifact: str  # stage, or stage/label
    state: str  # fresh, stale, damaged, partial or missing
    finished: str = ""
    seconds: float | None = None
    bytes: int | None = None
    path: str = ""
    why: tuple[str, ...] = ()

    def cells(self) -> list[str]:
        """The fields as text, at most three reasons of `why`."""
        seconds = "" if self.seconds is None else f"{self.seconds:.0f} s"
        size = "" if self.bytes is None else f"{self.bytes / 1e6:.1f} MB"
        more = [f"and {len(self.why) - 3} more"] if len(self.why) > 3 else []
        why = "; ".join([*self.why[:3], *more])
        return [self.artifact, self.state, self.finished, seconds, size, self.path, why]


def run(options: StageOptions, *, verify: bool = False, repair: bool = False) -> None:
    """Prints a row per latest artifact, broken run and missing stage.

    `verify` reads every file of every artifact, `repair` also mends. RisError where something is damaged after that.
    """
    damages = find_damages(options) if verify or repair else {}
    if repair:
        damages = mend(options, damages)
    rows = [row for stage in STAGES for row in rows_of(options, stage, damages)]
    table = [[field.name for field in fields(Row)], *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    emit(options, "\n".join(lines), [asdict(row) for row in rows])
    damaged = [row.path for row in rows if row.state == "damaged"]
    if damaged:
        remedy = "what can be mended is" if repair else "`ris status --repair` mends what can be"
        raise RisError(f"damaged: {', '.join(damaged)}; {remedy}")


def rows_of(options: StageOptions, stage: str, damages: Damages) -> list[Row]:
    """The rows of one stage: the latest artifacts, others where they are damaged, broken runs."""
    name = card_of(options).name
    rows = []
    latest = list_latest(options.runs, name, stage).values()
    for artifact in latest:
        damaged = damages.get(options.runs / name / stage / artifact.digest, [])
        changed = reasons_to_rerun(options, artifact)
        state = "damaged" if damaged else "stale" if changed else "fresh"
        manifest = artifact.manifest
        size, seconds = manifest["files"]["bytes"], manifest["timings"]["total"]
        path = str(options.runs / name / stage / artifact.digest)
        why = tuple(map(str, damaged)) or tuple(changed)
        rows.append(Row(artifact.name, state, manifest["finished"], seconds, size, path, why))
    known = [artifact.digest for artifact in latest]
    for folder in list_artifacts(options.runs, name, stage):
        faults = tuple(map(str, damages.get(folder, ()))) or _manifest_fault(folder)
        if faults and folder.name not in known:
            rows.append(Row(stage, "damaged", path=str(folder), why=faults))
    for partial in sorted((options.runs / name / stage).glob("*.partial")):
        rows.append(Row(stage, "partial", path=str(partial), why=("broken off or running",)))
    return rows or [Row(stage, "missing", why=(f"run: {STAGES[stage].command}",))]


def _manifest_fault(folder: Path) -> tuple[str, ...]:
    try:
        load_artifact(folder)
        return ()
    except RisError as error:
        return (str(error),)


def reasons_to_rerun(options: StageOptions, artifact: Artifact) -> list[str]:
    """What its stage would do differently now: configuration, inputs, code."""
    manifest = artifact.manifest
    stage = manifest["stage"]
    now: dict[str, Any] = {"inputs": current_inputs(options, manifest["inputs"])}
    now["code_version"] = STAGES[stage].code_version
    if stage in CONFIGS:
        own = {key: value for key, value in manifest["flags"].items() if key in manifest["configuration"]}
        now["configuration"] = asdict(resolve_config(options, CONFIGS[stage], stage, **own))
    return differences(manifest, now)


def current_inputs(options: StageOptions, inputs: dict[str, str]) -> dict[str, str]:
    """The digests that the inputs of these names have now."""
    dataset = card_of(options).name
    now = {}
    for name in inputs:
        if name == "data":
            now[name] = _data_digest_or_reason(options)
            continue
        try:
            latest = find_named(options.runs, dataset, name)
            now[name] = latest.digest if latest else "missing"
        except RisError:  # has a row of its own
            now[name] = "damaged"
    return now


def _data_digest_or_reason(options: StageOptions) -> str:
    try:
        return data_digest(options)
    except RisError as error:
        return str(error)
