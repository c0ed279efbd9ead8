"""`ris status`: which artifacts of a data set are fresh, stale, broken off or missing."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from ris_pipeline.artifacts import STAGES, Artifact, differences, find_named, list_latest
from ris_pipeline.config import CONFIGS
from ris_pipeline.errors import RisError
from stages.common import StageOptions, card_of, data_digest, emit, resolve_config


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


def run(options: StageOptions, *, verify: bool = False) -> None:
    """Prints a row per latest artifact, broken run and missing stage; `verify` compares all checksums."""
    rows = [row for stage in STAGES for row in rows_of(options, stage, verify=verify)]
    table = [[field.name for field in fields(Row)], *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    emit(options, "\n".join(lines), [asdict(row) for row in rows])


def rows_of(options: StageOptions, stage: str, *, verify: bool) -> list[Row]:
    """The rows of one stage."""
    name = card_of(options).name
    rows = []
    for artifact in list_latest(options.runs, name, stage).values():
        damaged = artifact.damaged_files() if verify else []
        changed = reasons_to_rerun(options, artifact)
        state = "damaged" if damaged else "stale" if changed else "fresh"
        manifest = artifact.manifest
        size, seconds = manifest["files"]["bytes"], manifest["timings"]["total"]
        path = str(options.runs / name / stage / artifact.digest)
        why = tuple(damaged or changed)
        rows.append(Row(artifact.name, state, manifest["finished"], seconds, size, path, why))
    for partial in sorted((options.runs / name / stage).glob("*.partial")):
        rows.append(Row(stage, "partial", path=str(partial), why=("broken off or running",)))
    return rows or [Row(stage, "missing", why=(f"run: {STAGES[stage].command}",))]


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
        latest = find_named(options.runs, dataset, name)
        now[name] = latest.digest if latest else "missing"
    return now


def _data_digest_or_reason(options: StageOptions) -> str:
    try:
        return data_digest(options)
    except RisError as error:
        return str(error)
