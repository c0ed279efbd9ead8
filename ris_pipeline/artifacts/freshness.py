"""Whether an artifact is still what its stage would make now, from the same settings, code, data and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.find import find_named, load_artifact
from ris_pipeline.artifacts.identity import Artifact, differences
from ris_pipeline.artifacts.layout import CHECKPOINT, INIT, NO_ARTIFACTS, PROPOSALS, STAGES, TRAIN_SPLIT
from ris_pipeline.errors import RisError

Look = Callable[[str, Mapping[str, Any]], str]


class Freshness:
    """Which artifacts of a data set are stale, and why; each artifact is looked at once.

    `look(name, manifest)` returns the present digest of an input that is no artifact, such as "data". `configure`
    returns the configuration with which an artifact would be made now. Both raise RisError where there is none.
    """

    def __init__(
        self, runs: Path, dataset: str, look: Look, configure: Callable[[Artifact], Mapping[str, Any] | None]
    ) -> None:
        self.runs, self.dataset = runs, dataset
        self._look, self._configure = look, configure
        self._reasons: dict[Path, list[str]] = {}

    def reasons(self, artifact: Artifact) -> list[str]:
        """Return what its stage would do differently now, and which of its inputs are stale; empty if it is fresh."""
        if artifact.path not in self._reasons:
            self._reasons[artifact.path] = []  # no artifact is made from itself, but a manifest may say so
            self._reasons[artifact.path] = self._compare(artifact)
        return self._reasons[artifact.path]

    def _compare(self, artifact: Artifact) -> list[str]:
        manifest = artifact.manifest
        if CHECKPOINT in manifest["inputs"]:  # imported: no stage would make it again
            return []
        stage = STAGES[manifest["stage"]]
        now: dict[str, Any] = {"inputs": {}, "code_version": stage.code_version}
        behind: list[str] = []
        for name, recorded in manifest["inputs"].items():
            now["inputs"][name], stale = self._look_at_input(name, recorded, manifest)
            behind += stale
        configuration = self._configure(artifact)
        if configuration is not None:
            now["configuration"] = {key: value for key, value in configuration.items() if key not in stage.speed}
        return [*differences(manifest, now), *behind]

    def _look_at_input(self, name: str, recorded: str, manifest: Mapping[str, Any]) -> tuple[str, list[str]]:
        """Return the input's present digest, or a word on why it has none; and the reason why it is stale itself."""
        if name in (INIT, PROPOSALS):  # files from anywhere, which may be gone
            return recorded, []
        if name in NO_ARTIFACTS:
            try:
                return self._look(name, manifest), []
            except RisError as error:
                return str(error), []
        try:
            latest = find_named(self.runs, self.dataset, name)
        except RisError:  # `ris status` has a row of it
            return "damaged", []
        if latest is None:
            return "missing", []
        reasons = self.reasons(latest) if latest.digest == recorded else []
        return latest.digest, [f"made from {name}, which is stale: {reason}" for reason in reasons[:1]]


def split_of(manifest: Mapping[str, Any]) -> str:
    """Return the split whose images an artifact was made from: that of its flags, or train."""
    return str(manifest["flags"].get("split", TRAIN_SPLIT))


def describe_other_data(artifact: Artifact, runs: Path, dataset: str, look: Look) -> str | None:
    """Return a line if the artifact, or any behind it, was made from annotations or images that have changed since.

    None where nothing has changed. Imported artifacts know nothing of data.
    """
    to_see, seen = [artifact], set()
    while to_see:
        found = to_see.pop()
        recorded = found.manifest["inputs"]
        name = f"{found.name} ({found.digest})"
        for what, words in (("data", "annotations"), ("images", "images")):
            if what in recorded and recorded[what] != look(what, found.manifest):
                return f"{name} was made from {words} that have changed since"
        for name, its_digest in found.manifest["inputs"].items():
            path = runs / dataset / name.partition("/")[0] / its_digest
            if name not in NO_ARTIFACTS and path not in seen:
                seen.add(path)
                source = load_artifact(path)
                to_see += [source] if source is not None else []
    return None
