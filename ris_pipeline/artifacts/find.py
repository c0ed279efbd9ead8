"""Finding artifacts: by request, by name, as variants of each other; and what two of them differ in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from ris_pipeline.artifacts.layout import MANIFEST, STAGES, WEIGHTS, latest_name
from ris_pipeline.artifacts.verify import check_whole
from ris_pipeline.errors import RisError


def find(request: Request) -> Artifact | None:
    """The finished artifact of exactly this request, or None."""
    return load_artifact(request.path)


def find_latest(runs: Path, dataset: str, stage: str, **flags: str | bool) -> Artifact | None:
    """Return the artifact of `stage` with exactly these flags that was asked for last; or None."""
    return find_named(runs, dataset, artifact_name(stage, flags))


def find_named(runs: Path, dataset: str, name: str) -> Artifact | None:
    """As find_latest, by Artifact.name, which manifests list as inputs.

    Where the link is lost, as in a copy that leaves links out, it is the artifact of that name that was finished last.
    """
    stage, _, label = name.partition("/")
    latest = load_artifact(runs / dataset / stage / latest_name(label))
    if latest is not None:
        return latest
    finished = [artifact for artifact in load_artifacts(runs, dataset, stage) if artifact.name == name]
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
        # Behind the link, which may lead elsewhere while the artifact is read.
        real = folder.parent / folder.readlink() if folder.is_symlink() else folder
        return Artifact(real, parse_manifest(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RisError(f"{path}: cannot be read: {error.strerror}; mend its disk or its permissions") from error
    except (ValueError, RecursionError) as error:
        raise RisError(f"{path}: damaged manifest ({error}); `ris status --repair` restores it") from error


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
    """Why `request` is not made yet: what differs from the latest artifact with its flags."""
    if request.partial.exists():
        return f"an earlier run broke off: resuming {request.partial.name}"
    latest = find_latest(request.runs, request.dataset, request.stage, **request.flags)
    if latest is None:
        return "nothing made yet"
    return "; ".join(differences(latest.manifest, request.identity)) or "its folder is gone"


def list_variants(runs: Path, dataset: str) -> list[Artifact]:
    """The finished artifacts of a data set, by stage and time; those with a damaged manifest are left out."""
    found = [artifact for stage in STAGES for artifact in load_artifacts(runs, dataset, stage)]
    order = list(STAGES)
    return sorted(found, key=lambda one: (order.index(one.manifest["stage"]), one.name, one.manifest["finished"]))


def find_variant(runs: Path, dataset: str, word: str, variants: Sequence[Artifact]) -> Artifact:
    """The artifact that `word` names: its digest or the beginning of it, or a name that has a latest (step2/pseudo).

    Raises RisError where there is none, or where several digests begin so.
    """
    matches = [one for one in variants if one.digest.startswith(word)]
    if len(matches) > 1:
        raise RisError(f"{word}: {', '.join(one.digest for one in matches)} begin so; write more of the digest")
    artifact = matches[0] if matches else find_named(runs, dataset, word)
    if artifact is None:
        names = ", ".join(dict.fromkeys(one.name for one in variants))
        raise RisError(f"{runs / dataset}: no run {word!r}; give a digest of `ris runs`, or one of: {names}")
    return artifact


def compare_identities(old: Artifact, new: Artifact, variants: Iterable[Artifact]) -> list[str]:
    """What of configuration, flags, seed and code differs, as "lr: 0.1 → 0.2", in them and in all they were made from.

    What differs further back stands behind the name of that artifact: "step1 epochs: 15 → 10".
    """
    known = {one.digest: one for one in variants}
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
    """The scores of the two to be compared: of the same kind and split, the last ones made from each.

    Two artifacts of scores are a pair themselves, whatever they score; RisError where their splits differ.
    """
    if old.manifest["stage"] == new.manifest["stage"] == "scores":
        splits = [one.manifest["flags"]["split"] for one in (old, new)]
        if splits[0] != splits[1]:
            raise RisError(f"{old.name} and {new.name} are of other splits, {splits[0]} and {splits[1]}")
        return [(old, new)]
    scores = [one for one in variants if one.manifest["stage"] == "scores"]
    known = {one.digest: one for one in variants}
    of_old, of_new = ({one.name: one for one in scores if _stems_from(one, x, known)} for x in (old, new))
    return [(of_old[name], of_new[name]) for name in of_old if name in of_new and of_old[name] != of_new[name]]


def find_scores(runs: Path, dataset: str, scored: str, split: str, settings: Mapping[str, object]) -> Artifact | None:
    """The last scores of step1 or step2 on a split whose network was trained with these settings, None without any."""
    variants = list_variants(runs, dataset)
    known = {one.digest: one for one in variants}
    networks = [one for one in variants if one.manifest["stage"] == scored and _has(one, settings)]
    scores = [one for one in variants if one.manifest["flags"] == {"scored": scored, "split": split}]
    fitting = [one for one in scores if any(_stems_from(one, network, known) for network in networks)]
    return fitting[-1] if fitting else None


def _has(artifact: Artifact, settings: Mapping[str, object]) -> bool:
    configuration = artifact.manifest["configuration"]
    return all(configuration.get(key) == value for key, value in settings.items())


def _stems_from(artifact: Artifact, source: Artifact, known: Mapping[str, Artifact]) -> bool:
    to_see = [artifact.digest]
    while to_see:
        one = to_see.pop()
        if one == source.digest:
            return True
        if one in known:
            to_see += known[one].manifest["inputs"].values()
    return False
