"""Artifacts: what a stage leaves on disk, and how that is named, found and explained.

    runs/<dataset>/<stage>/<digest>/          a finished artifact: it holds a manifest.json
    runs/<dataset>/<stage>/<digest>.partial/  being written, or left by a broken run for the next to resume
    runs/<dataset>/<stage>/latest             link to the artifact that was asked for last
    runs/<dataset>/<stage>/latest-<label>     the same among those with equal flags, such as latest-val

The digest covers configuration, flags, inputs, seed, precision and code version. Equal digest, equal result.

The manifest holds a checksum of itself and that of files.json, which has one of every other file; manifest.copy.json
is the manifest once more, so that a damaged byte in it does not cost what took days. `integrity` compares them.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import render_json
from ris_pipeline.errors import RisError

MANIFEST, MANIFEST_COPY = "manifest.json", "manifest.copy.json"
FILES = "files.json"
RECORDS = (MANIFEST, MANIFEST_COPY, FILES)  # what an artifact holds beside its stage's files
RESUME = "resume.pt"  # the checkpoint of a training; removed when its artifact has been published
UNLISTED = (*RECORDS, RESUME)  # what files.json does not list
CHECKSUM = "checksum"  # of the manifest without it
CHECKPOINT = "checkpoint"  # input of an artifact that was imported: the digest of the file it comes from
NO_ARTIFACTS = ("data", "images", CHECKPOINT)  # the names of inputs that are files from elsewhere


@dataclass(frozen=True, slots=True)
class Stage:
    """The command that makes a stage's artifacts, and the version of the code behind it."""

    command: str
    code_version: int  # raise it with every change after which the stage would write something else
    memory: tuple[str, ...] = ()  # the configuration keys that decide how much memory it takes
    speed: tuple[str, ...] = ()  # those that change nothing but the speed: outside of the identity
    uses_precision: bool = False  # whether --precision can change the result


STAGES = {
    "clip": Stage("ris pretrain-clip", 3, ("object_batch", "scene_batch"), uses_precision=True),
    "step1": Stage("ris train-step1", 2, ("batch_size", "refs_per_image"), uses_precision=True),
    "responses": Stage("ris dump-responses", 1, ("batch_size",), speed=("batch_size",)),
    "pseudolabels": Stage("ris make-pseudolabels", 2, ("irn_batch",)),
    "step2": Stage("ris train-step2", 3, ("batch_size", "refs_per_image"), uses_precision=True),
    "scores": Stage("ris score", 2, uses_precision=True),
    "irnet": Stage("ris import-checkpoint --kind irn", 1),
    "report": Stage("ris report", 5),
}
IDENTITY = ("dataset", "stage", "configuration", "flags", "inputs", "seed", "precision", "code_version", "n_ranks")


def digest(value: Any) -> str:
    """The first 12 hex digits of the SHA-256 of `value` as canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def label_of(flags: Mapping[str, str | bool]) -> str:
    """The flags in one word, by their names: {"split": "val"} "val", {"refine": False} "no-refine"."""
    words = (
        value if isinstance(value, str) else name if value else f"no-{name}" for name, value in sorted(flags.items())
    )
    return "-".join(words)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished artifact."""

    path: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """The digest of its identity, which all that reads it keeps as its input, whatever its folder is called."""
        return digest(identity_of(self.manifest))

    @property
    def name(self) -> str:
        """Stage and label, such as "step1" or "responses/val"."""
        label = label_of(self.manifest["flags"])
        return f"{self.manifest['stage']}/{label}" if label else str(self.manifest["stage"])


@dataclass(frozen=True, slots=True)
class Request:
    """What a stage is asked to make: everything that decides the result, and where it goes."""

    runs: Path
    dataset: str
    stage: str
    configuration: Mapping[str, Any]  # resolved
    inputs: Mapping[str, str]  # {Artifact.name: Artifact.digest}, "data" for the annotations, "images" for the split's
    flags: Mapping[str, str | bool] = field(default_factory=dict)  # arguments of the command that make variants
    seed: int = 0
    precision: str = "fp32"
    n_ranks: int = 1  # processes of a training: their batches differ from those of one
    chosen: Mapping[str, Any] = field(default_factory=dict)  # of the configuration, by --config and --set; no identity

    @property
    def identity(self) -> dict[str, Any]:
        """All that the digest covers, as plain JSON values."""
        stage = STAGES[self.stage]
        identity: dict[str, Any] = {
            "dataset": self.dataset,
            "stage": self.stage,
            "configuration": {key: value for key, value in self.configuration.items() if key not in stage.speed},
            "flags": dict(self.flags),
            "inputs": dict(self.inputs),
            "seed": self.seed,
            "precision": self.precision if stage.uses_precision else "fp32",
            "code_version": stage.code_version,
        }
        if self.n_ranks > 1:
            identity["n_ranks"] = self.n_ranks
        return json.loads(json.dumps(identity, allow_nan=False))  # type: ignore[no-any-return]

    @property
    def path(self) -> Path:
        """The folder of the finished artifact."""
        return self.runs / self.dataset / self.stage / digest(self.identity)

    @property
    def partial(self) -> Path:
        """The folder it is written in until it is whole."""
        return self.path.with_name(f"{self.path.name}.partial")


def find(request: Request) -> Artifact | None:
    """The finished artifact of exactly this request, or None."""
    return load_artifact(request.path)


def find_latest(runs: Path, dataset: str, stage: str, **flags: str | bool) -> Artifact | None:
    """The artifact of `stage` that was asked for last, among those with these flags if any; or None."""
    return find_named(runs, dataset, f"{stage}/{label_of(flags)}")


def find_named(runs: Path, dataset: str, name: str) -> Artifact | None:
    """As find_latest, by Artifact.name, which manifests list as inputs.

    Where the link is lost, as in a copy that leaves links out, it is the artifact of that name that was finished last.
    """
    stage, _, label = name.partition("/")
    latest = load_artifact(runs / dataset / stage / (f"latest-{label}" if label else "latest"))
    if latest is not None:
        return latest
    finished = [artifact for artifact in load_artifacts(runs, dataset, stage) if artifact.name == name or not label]
    return max(finished, key=lambda artifact: str(artifact.manifest["finished"]), default=None)


def list_artifacts(runs: Path, dataset: str, stage: str) -> list[Path]:
    """The folders of all finished artifacts of a stage, damaged or not, by name."""
    return sorted(folder for folder in (runs / dataset / stage).glob("[0-9a-f]" * 12) if folder.is_dir())


def load_artifacts(runs: Path, dataset: str, stage: str) -> list[Artifact]:
    """The finished artifacts of a stage, by the name of their folder; those with a damaged manifest are left out."""
    found = []
    for folder in list_artifacts(runs, dataset, stage):
        with suppress(RisError):  # `ris status` shows it
            artifact = load_artifact(folder)
            if artifact is not None:
                found.append(artifact)
    return found


def list_latest(runs: Path, dataset: str, stage: str) -> dict[str, Artifact]:
    """{label: artifact}: of the artifacts of a stage with equal flags, the one that was asked for last.

    One whose manifest is damaged is left out.
    """
    names = {label_of(found.manifest["flags"]): found.name for found in load_artifacts(runs, dataset, stage)}
    latest = {}
    for label, name in sorted(names.items()):
        with suppress(RisError):  # reported by whoever wants to read it, and by `integrity`
            artifact = find_named(runs, dataset, name)
            if artifact is not None:
                latest[label] = artifact
    return latest


def load_artifact(folder: Path) -> Artifact | None:
    """The artifact in a folder, or behind a link; None where there is none. Raises RisError for a damaged manifest."""
    path = folder / MANIFEST
    try:
        return Artifact(folder.resolve(), parse_manifest(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RisError(f"{path}: cannot be read: {error.strerror}; mend its disk or its permissions") from error
    except (ValueError, RecursionError) as error:
        raise RisError(f"{path}: damaged manifest ({error}); `ris status --repair` restores it") from error


def explain(request: Request) -> str:
    """Why `request` is not made yet: what differs from the latest artifact with its flags."""
    if request.partial.exists():
        return f"an earlier run broke off: resuming {request.partial.name}"
    latest = find_latest(request.runs, request.dataset, request.stage, **request.flags)
    if latest is None:
        return "nothing made yet"
    return "; ".join(differences(latest.manifest, request.identity)) or "its folder is gone"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Each key of the identity `new` whose value differs in `old`, as "configuration.lr: 5e-05 → 0.0001"."""
    before = _flatten({key: old.get(key) for key in new})
    after = _flatten(new)
    names = [*after, *(name for name in before if name not in after)]
    return [
        f"{name}: {before.get(name, 'absent')} → {after.get(name, 'absent')}"
        for name in names
        if before.get(name, "absent") != after.get(name, "absent")
    ]


def parse_manifest(data: bytes) -> dict[str, Any]:
    """The manifest in the bytes of its file. Raises ValueError where they are not those that were published."""
    manifest = json.loads(data)
    if not isinstance(manifest, dict) or "stage" not in manifest:
        raise ValueError("not a manifest")
    # Rendered again, not only parsed: a byte between the values may have changed as well.
    if CHECKSUM in manifest and data != render_json(with_checksum(manifest)).encode():
        raise ValueError("its checksum differs")
    return manifest


def identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that the digest covers."""
    return {key: manifest[key] for key in IDENTITY if key in manifest}


def with_checksum(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the SHA-256 of all else in it under "checksum"."""
    rest = {key: value for key, value in manifest.items() if key != CHECKSUM}
    return {**rest, CHECKSUM: hashlib.sha256(render_json(rest).encode()).hexdigest()}


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flatten(inner, f"{prefix}.{key}" if prefix else key))
    return flat
