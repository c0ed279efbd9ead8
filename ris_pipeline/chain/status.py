"""The state of a data set's artifacts: fresh, stale, damaged, running or missing; and the repair of damaged ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.find import list_artifacts, list_latest, load_artifact
from ris_pipeline.artifacts.identity import parse_manifest
from ris_pipeline.artifacts.layout import CHECKPOINT, MANIFEST, NO_ARTIFACTS, STAGES, command_of
from ris_pipeline.artifacts.locks import hold, holder_of
from ris_pipeline.artifacts.publish import withdraw
from ris_pipeline.artifacts.verify import SURPLUS, Damage, find_damage
from ris_pipeline.chain.context import Context
from ris_pipeline.errors import RisError

READ_FROM = {"responses": "step1", "pseudolabels": "responses", "step2": "pseudolabels"}  # if no manifest says so
RESUMABLE = ("responses", "pseudolabels", "scores")  # stages that resume from the files that are whole
OPTIONAL = ("clip", "irnet")  # no stage waits for them: the small CLIP is shipped, and IRNet is trained by its stage
Damages = dict[Path, list[Damage]]


@dataclass(frozen=True, slots=True)
class StatusRow:
    """A line of the tree."""

    artifact: str  # stage, or stage/label
    state: str  # fresh, stale, damaged, running, partial or missing
    finished: str = ""
    seconds: float | None = None
    bytes: int | None = None
    path: str = ""
    why: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()  # names of artifacts
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The artifact's, or the one that a run began."""
        return Path(self.path).name.removesuffix(".partial")

    @property
    def stage(self) -> str:
        """The stage's name, without the label."""
        return self.artifact.partition("/")[0]


def list_status(context: Context, damages: Mapping[Path, Sequence[Damage]]) -> list[StatusRow]:
    """Return a row per latest artifact, damaged one, running or broken run and missing stage, in the stages' order.

    `damages`: as `find_damages` returns them, or {} if nothing has been verified.
    """
    return [row for stage in STAGES for row in _list_stage(context, stage, damages)]


def _list_stage(context: Context, stage: str, damages: Mapping[Path, Sequence[Damage]]) -> list[StatusRow]:
    folder = context.runs / context.card.name / stage
    rows = []
    latest = list_latest(context.runs, context.card.name, stage).values()
    for artifact in latest:
        path = folder / artifact.digest
        damaged = damages.get(path, [])
        changed = context.freshness.reasons(artifact)
        state = "damaged" if damaged else "stale" if changed else "fresh"
        manifest = artifact.manifest
        rows.append(
            StatusRow(
                artifact.name, state, manifest["finished"], manifest["timings"]["total"], manifest["files"]["bytes"],
                str(path), why=tuple(map(str, damaged)) or tuple(changed),
                reads=tuple(name for name in manifest["inputs"] if name not in NO_ARTIFACTS),
                configuration=manifest["configuration"],
            )
        )  # fmt: skip
    known = [artifact.digest for artifact in latest]
    for path in list_artifacts(context.runs, context.card.name, stage):
        faults = tuple(map(str, damages.get(path, ()))) or _find_manifest_fault(path)
        if faults and path.name not in known:
            rows.append(StatusRow(stage, "damaged", path=str(path), why=faults))
    command = context.command(STAGES[stage].command)
    for partial in sorted(folder.glob("*.partial")):
        holder = holder_of(partial.with_suffix(".lock"))
        reason = f"by {holder}" if holder else f"broken off; {command} resumes it"
        rows.append(StatusRow(stage, "running" if holder else "partial", path=str(partial), why=(reason,)))
    if rows or stage in OPTIONAL:
        return rows
    return [StatusRow(stage, "missing", why=(f"run: {command}",))]


def _find_manifest_fault(folder: Path) -> tuple[str, ...]:
    try:
        load_artifact(folder)
        return ()
    except RisError as error:
        return (str(error),)


def arrange(rows: Sequence[StatusRow]) -> list[tuple[str, StatusRow]]:
    """Return the rows in the order of a tree, each below the last stage that it reads, with the branch before it."""
    below: dict[int, list[StatusRow]] = {}
    for row in rows:
        parent = _find_parent(row, rows)
        below.setdefault(id(parent) if parent else 0, []).append(row)

    def draw(key: int, indent: str) -> Iterator[tuple[str, StatusRow]]:
        children = below.get(key, [])
        for row in children:
            is_last = row is children[-1]
            yield (indent + ("└─ " if is_last else "├─ ")) if key else "", row
            yield from draw(id(row), indent + (("   " if is_last else "│  ") if key else ""))

    return list(draw(0, ""))


def _find_parent(row: StatusRow, rows: Sequence[StatusRow]) -> StatusRow | None:
    order = list(STAGES)
    read = [other for other in rows if other.artifact in row.reads and other is not row]
    if not read and not row.reads:  # without a manifest: below the stage that it usually reads
        usual = [other for other in rows if other.stage == READ_FROM.get(row.stage)]
        read = [other for other in usual if other.artifact in ("responses/train", "pseudolabels/refine")] or usual[:1]
    return max(read, key=lambda other: order.index(other.stage), default=None)


def find_damages(context: Context) -> Damages:
    """Return {folder: damages} of the damaged artifacts of the data set, in the order of the stages."""
    folders = [path for stage in STAGES for path in list_artifacts(context.runs, context.card.name, stage)]
    damages = {}
    with context.console.progress("verify", len(folders)) as advance:
        for folder in folders:
            damages[folder] = find_damage(folder)
            advance()
    return {folder: found for folder, found in damages.items() if found}


def repair(context: Context, damages: Mapping[Path, Sequence[Damage]]) -> Damages:
    """Mend what can be mended, say how, and return what is still damaged.

    An artifact whose stage can go on is taken out of publication: its damaged files are removed, and its command,
    which is named, makes them again. A training cannot be repeated in part: it stays, and is named with its command.
    """
    left: Damages = {}
    for folder in damages:
        try:
            with hold(folder.with_name(f"{folder.name}.lock")):
                context.say(f"{folder}: {_mend(context, folder)}")
        except RisError as error:
            context.say(str(error))
            left[folder] = find_damage(folder)
    return left


def _mend(context: Context, folder: Path) -> str:
    """Mend the artifact and return what was done, in words. Raises RisError where only the user can."""
    damages = find_damage(folder)
    files = [damage.file for damage in damages if damage.fault != SURPLUS]
    if not files:
        raise RisError(f"{folder}: {'; '.join(map(str, damages))}")
    again = _describe_again(context, folder)
    if folder.parent.name not in RESUMABLE:
        raise RisError(f"{folder}: {', '.join(files)}: a training cannot be repeated in part; {again}")
    withdraw(folder, files)
    shown = ", ".join(files[:5]) + (" …" if len(files) > 5 else "")
    return f"taken out of publication, {len(files)} damaged files removed: {shown}; to make them again, {again}"


def _describe_again(context: Context, folder: Path) -> str:
    """Return the command that makes the artifact again, as it was made."""
    stage = folder.parent.name
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return f"with the settings that it had, run: {context.command(STAGES[stage].command)}"
    if CHECKPOINT in manifest["inputs"]:
        return "import it again: ris import-checkpoint FILE --force"
    words = [command_of(stage, manifest["flags"])]
    words += [f"--seed {manifest['seed']}"] if manifest["seed"] else []
    words += [f"--precision {manifest['precision']}"] if manifest["precision"] != "fp32" else []
    for key, value in manifest.get("chosen", {}).items():
        own = {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
        words += [f"--set {name}={part}" for name, part in own.items()]
    words += ["--force"] if stage not in RESUMABLE else []
    return f"run: {context.command(' '.join(words))}"
