"""Finding artifacts: by request, by name, as variants of each other; and what differs between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ris_pipeline.artifacts.identity import (
    Artifact,
    Request,
    artifact_name,
    differences,
    identity_of,
    label_of,
    parse_manifest,
)
from ris_pipeline.artifacts.layout import MANIFEST, NO_ARTIFACTS, STAGES, WEIGHTS, latest_name
from ris_pipeline.artifacts.verify import check_whole
from ris_pipeline.errors import RisError


def find(request: Request) -> Artifact | None:
    """Return the finished artifact of exactly this request, or None."""
    return load_artifact(request.path)


def find_latest(runs: Path, dataset: str, stage: str, **flags: str | bool) -> Artifact | None:
    """Return the artifact of `stage` with exactly these flags that was asked for last; or None."""
    return find_named(runs, dataset, artifact_name(stage, flags))


def find_named(runs: Path, dataset: str, name: str) -> Artifact | None:
    """Return the artifact with this Artifact.name that was asked for last; or None.

    Where the link is lost, as in a copy without links, it is the artifact of that name that was finished last.
    """
    stage, _, label = name.partition("/")
    latest = load_artifact(runs / dataset / stage / latest_name(label))
    if latest is not None:
        return latest
    finished = [artifact for artifact in load_artifacts(runs, dataset, stage) if artifact.name == name]
    return max(finished, key=lambda artifact: str(artifact.manifest["finished"]), default=None)


def find_behind(folder: Path, inputs: Mapping[str, str], stage: str) -> Artifact | None:
    """Return the nearest artifact of a stage among those of `walk_behind`, or None."""
    return next((found for found in walk_behind(folder, inputs) if found.manifest["stage"] == stage), None)


def walk_behind(folder: Path, inputs: Mapping[str, str]) -> Iterator[Artifact]:
    """Yield the artifacts that `inputs` are made from, the nearest first, of the data set in a folder of runs.

    `inputs`: as a manifest keeps them. What is no longer there is passed over.
    """
    to_see, seen = list(inputs.items()), set()
    while to_see:
        name, its_digest = to_see.pop(0)
        path = folder / name.partition("/")[0] / its_digest
        found = None if name in NO_ARTIFACTS or path in seen else load_artifact(path)
        seen.add(path)
        if found is not None:
            yield found
            to_see += found.manifest["inputs"].items()


def list_artifacts(runs: Path, dataset: str, stage: str) -> list[Path]:
    """Return the folders of all finished artifacts of a stage, damaged or not, sorted."""
    return sorted(folder for folder in (runs / dataset / stage).glob("[0-9a-f]" * 12) if folder.is_dir())


def load_artifacts(runs: Path, dataset: str, stage: str) -> list[Artifact]:
    """Return the finished artifacts of a stage, sorted by folder, without those whose manifest is damaged."""
    found = []
    for folder in list_artifacts(runs, dataset, stage):
        with suppress(RisError):  # `ris status` shows it
            artifact = load_artifact(folder)
            if artifact is not None:
                found.append(artifact)
    return found


def list_latest(runs: Path, dataset: str, stage: str) -> dict[str, Artifact]:
    """Return {label: artifact}: for each combination of flags, the artifact of a stage that was asked for last.

    Artifacts whose manifest is damaged are left out.
    """
    names = {label_of(found.manifest["flags"]): found.name for found in load_artifacts(runs, dataset, stage)}
    latest = {}
    for label, name in sorted(names.items()):
        with suppress(RisError):  # reported by whoever wants to read it, and by `verify`
            artifact = find_named(runs, dataset, name)
            if artifact is not None:
                latest[label] = artifact
    return latest


def load_artifact(folder: Path) -> Artifact | None:
    """Return the artifact in a folder or behind a link, None where there is none.

    Raises RisError for a manifest that is damaged or cannot be read.
    """
    path = folder / MANIFEST
    try:
        # Behind the link, which may lead elsewhere while the artifact is read.
        real = folder.parent / folder.readlink() if folder.is_symlink() else folder
        return Artifact(real, parse_manifest(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RisError(f"{path}: cannot be read: {error.strerror}; mend its disk or its permissions") from error
    except (ValueError, RecursionError) as error:
        raise RisError(f"{path}: damaged manifest ({error}); `ris status --repair` mends what can be mended") from error


def find_weights(source: Path) -> Path:
    """Return the weights in the folder of an artifact, or `source` where it is a file itself.

    Raises RisError where there are none, and where the artifact is damaged.
    """
    file = source
    if source.is_dir():
        check_whole(source.resolve())
        file = source / WEIGHTS
    if not file.is_file():
        raise RisError(f"{file}: no such file; give the folder of a trained artifact, or a checkpoint")
    return file


def explain(request: Request) -> str:
    """Return why `request` is not made yet: what differs from the latest artifact with its flags."""
    if request.partial.exists():
        return f"an earlier run broke off: resuming {request.partial.name}"
    latest = find_latest(request.runs, request.dataset, request.stage, **request.flags)
    if latest is None:
        return "nothing made yet"
    return "; ".join(differences(latest.manifest, request.identity)) or "its folder is gone"


def list_variants(runs: Path, dataset: str) -> list[Artifact]:
    """Return the finished artifacts of a data set, by stage, name and time, without damaged manifests."""
    found = [artifact for stage in STAGES for artifact in load_artifacts(runs, dataset, stage)]
    order = list(STAGES)
    return sorted(found, key=lambda run: (order.index(run.manifest["stage"]), run.name, run.manifest["finished"]))


def find_variant(runs: Path, dataset: str, word: str, variants: Sequence[Artifact]) -> Artifact:
    """Return the artifact that `word` names: by the beginning of its digest, or by a name, such as step2/pseudo.

    Raises RisError where there is none, or where several digests begin with it.
    """
    matches = [run for run in variants if run.digest.startswith(word)]
    if len(matches) > 1:
        raise RisError(f"{word}: begins {' and '.join(run.digest for run in matches)}; write more of the digest")
    artifact = matches[0] if matches else find_named(runs, dataset, word)
    if artifact is None:
        names = ", ".join(dict.fromkeys(run.name for run in variants))
        raise RisError(f"{runs / dataset}: no run {word!r}; give a digest of `ris runs`, or one of: {names}")
    return artifact


def compare_identities(old: Artifact, new: Artifact, variants: Iterable[Artifact]) -> list[str]:
    """Return the differences between two artifacts and, recursively, between their inputs.

    They are of configuration, flags, seed and code: "lr: 0.1 → 0.2", or "step1 epochs: 15 → 10" for one in the Step-1
    behind them.
    """
    known = {run.digest: run for run in variants}
    lines: list[str] = []
    _compare(old, new, "", known, lines)
    return list(dict.fromkeys(lines))


def _compare(old: Artifact, new: Artifact, prefix: str, known: Mapping[str, Artifact], lines: list[str]) -> None:
    before, after = identity_of(old.manifest), identity_of(new.manifest)
    inputs_before, inputs_after = before.pop("inputs"), after.pop("inputs")
    lines += [prefix + line.removeprefix("configuration.") for line in differences(before, after)]
    for name in [*inputs_after, *(name for name in inputs_before if name not in inputs_after)]:
        was, now = inputs_before.get(name, "absent"), inputs_after.get(name, "absent")
        if was == now:
            continue
        if was in known and now in known:
            _compare(known[was], known[now], f"{name} ", known, lines)
        else:
            lines.append(f"{prefix}reads {name}: {was} → {now}")


def pair_scores(old: Artifact, new: Artifact, variants: Sequence[Artifact]) -> list[tuple[Artifact, Artifact]]:
    """Return the scores of the two artifacts to compare: of equal row and split, the last ones made from each.

    Two artifacts of scores are a pair themselves. Raises RisError where their splits differ.
    """
    if old.manifest["stage"] == new.manifest["stage"] == "scores":
        splits = old.manifest["flags"]["split"], new.manifest["flags"]["split"]
        if splits[0] != splits[1]:
            raise RisError(f"{old.name} and {new.name} are of different splits, {splits[0]} and {splits[1]}")
        return [(old, new)]
    scores = [run for run in variants if run.manifest["stage"] == "scores"]
    known = {run.digest: run for run in variants}
    of_old, of_new = (
        {score.name: score for score in scores if _stems_from(score, source, known)} for source in (old, new)
    )
    return [(of_old[name], of_new[name]) for name in of_old if name in of_new and of_old[name] != of_new[name]]


def _stems_from(artifact: Artifact, source: Artifact, known: Mapping[str, Artifact]) -> bool:
    to_see = [artifact.digest]
    while to_see:
        digest = to_see.pop()
        if digest == source.digest:
            return True
        if digest in known:
            to_see += known[digest].manifest["inputs"].values()
    return False
