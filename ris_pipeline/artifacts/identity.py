"""Artifacts and requests: what decides a stage's result, the digest of that, and the manifest that keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import hash_file, render_json
from ris_pipeline.artifacts.layout import STAGES

CHECKSUM = "checksum"  # of the manifest without it
IDENTITY = ("dataset", "stage", "configuration", "flags", "inputs", "seed", "precision", "code_version", "n_ranks")
# No stage asks for n_ranks any more; trainings of several processes that are older have it, and other batches.


def digest(value: Any) -> str:
    """Return the first 12 hex digits of the SHA-256 of `value` as canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_file(path: Path) -> str:
    """Return the first 12 hex digits of the SHA-256 of a file's bytes."""
    return hash_file(path)[:12]


def label_of(flags: Mapping[str, str | bool]) -> str:
    """Return the flags as one word: "val" for {"split": "val"}, "no-refine" for {"refine": False}."""
    words = (
        value if isinstance(value, str) else name if value else f"no-{name}" for name, value in sorted(flags.items())
    )
    return "-".join(words)


def artifact_name(stage: str, flags: Mapping[str, str | bool]) -> str:
    """Return stage and label, such as "step1" or "responses/val"."""
    label = label_of(flags)
    return f"{stage}/{label}" if label else stage


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
        return artifact_name(self.manifest["stage"], self.manifest["flags"])


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
    chosen: Mapping[str, Any] = field(default_factory=dict)  # of the configuration, by --config and --set; no identity
    becomes_latest: bool = True  # `latest` is to lead to it; no identity

    @property
    def identity(self) -> dict[str, Any]:
        """All that the digest covers, as plain JSON values."""
        stage = STAGES[self.stage]
        identity = {
            "dataset": self.dataset,
            "stage": self.stage,
            "configuration": {key: value for key, value in self.configuration.items() if key not in stage.speed},
            "flags": dict(self.flags),
            "inputs": dict(self.inputs),
            "seed": self.seed,
            "precision": self.precision if stage.uses_precision else "fp32",
            "code_version": stage.code_version,
        }
        return json.loads(json.dumps(identity, allow_nan=False))  # type: ignore[no-any-return]

    @property
    def path(self) -> Path:
        """The folder of the finished artifact."""
        return self.runs / self.dataset / self.stage / digest(self.identity)

    @property
    def partial(self) -> Path:
        """The folder it is written in until it is whole."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def lock(self) -> Path:
        """The file that the process which writes it holds."""
        return self.path.with_name(f"{self.path.name}.lock")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each key of the identity `new` that differs in `old`: "configuration.lr: 5e-05 → 0.0001"."""
    before = _flatten({key: old.get(key) for key in new})
    after = _flatten(new)
    names = [*after, *(name for name in before if name not in after)]
    return [
        f"{name}: {before.get(name, 'absent')} → {after.get(name, 'absent')}"
        for name in names
        if before.get(name, "absent") != after.get(name, "absent")
    ]


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Return the manifest in the bytes of its file. Raises ValueError where they are not those that were published."""
    manifest = json.loads(data)
    if not isinstance(manifest, dict) or "stage" not in manifest:
        raise ValueError("not a manifest")
    # Rendered again, not only parsed: a byte between the values may have changed as well.
    if data != render_json(with_checksum(manifest)).encode():
        raise ValueError("its checksum differs")
    return manifest


def identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest that the digest covers."""
    return {key: manifest[key] for key in IDENTITY if key in manifest}


def with_checksum(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with the SHA-256 of all else in it under "checksum"."""
    rest = {key: value for key, value in manifest.items() if key != CHECKSUM}
    return {**rest, CHECKSUM: hashlib.sha256(render_json(rest).encode()).hexdigest()}


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flatten(inner, f"{prefix}.{key}" if prefix else key))
    return flat
