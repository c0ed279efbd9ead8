"""`ris status --verify` and `--repair`: what is damaged of the artifacts, and making exactly that anew.

A repair takes what is whole into a folder beside the artifact and lets the stage go on there as after a broken run.
What it makes goes into the artifact only where it has the checksums that were published.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import write_bytes
from ris_pipeline.artifacts.identity import (
    CHECKPOINT,
    IDENTITY,
    NO_ARTIFACTS,
    RECORDS,
    STAGES,
    Artifact,
    Request,
    differences,
    list_artifacts,
)
from ris_pipeline.artifacts.locks import hold
from ris_pipeline.artifacts.publish import Work
from ris_pipeline.errors import RisError
from ris_pipeline.integrity import (
    SURPLUS,
    Damage,
    check_whole,
    find_damage,
    load_manifest,
    recorded_checksum,
    restore_records,
)
from stages.common import command_line, data_inputs, open_dataset
from stages.options import StageOptions, card_of, say
from stages.progress import progress

Damages = dict[Path, list[Damage]]


def find_damages(options: StageOptions) -> Damages:
    """{folder: what is damaged} of all artifacts of the data set that are damaged, in the order of the stages."""
    name = card_of(options).name
    folders = [folder for stage in STAGES for folder in list_artifacts(options.runs, name, stage)]
    damages = {}
    with progress(options, "verify", len(folders)) as advance:
        for folder in folders:
            damages[folder] = find_damage(folder)
            advance()
    return {folder: found for folder, found in damages.items() if found}


def repair(options: StageOptions, damages: Damages) -> Damages:
    """Mends what can be mended, inputs before what was made from them; what is still damaged, and why on stderr."""
    left = {}
    for folder in damages:
        try:
            with hold(folder.with_name(f"{folder.name}.lock")):
                mended = _repair(options, folder)
            say(options, f"{folder}: mended: {', '.join(mended)}")
        except RisError as error:
            say(options, str(error))
        found = find_damage(folder)
        if found:
            left[folder] = found
    return left


def _repair(options: StageOptions, folder: Path) -> list[str]:
    """The names of the files that were mended; RisError where one cannot be."""
    restored = restore_records(folder)
    damages = [one for one in find_damage(folder) if one.fault != SURPLUS]
    if not damages:
        return restored
    manifest = load_manifest(folder)
    unknown = [one.file for one in damages if recorded_checksum(folder, one.file) is None]
    if manifest is None or unknown:
        what = ", ".join(unknown) or "its manifest and the copy"
        raise RisError(f"{folder}: {what} cannot be restored from what is left; {_anew(options, folder)}")
    files = [one.file for one in damages]
    remake = _REMAKE.get(manifest["stage"])
    if remake is None:
        raise RisError(f"{folder}: {', '.join(files)}: a training cannot be repeated in part; {_anew(options, folder)}")
    scratch = folder.with_name(f"{folder.name}.repair")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _remake(options, folder, manifest, files, remake, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [*restored, *files]


def _anew(options: StageOptions, folder: Path) -> str:
    """The remedy where nothing else helps."""
    manifest = load_manifest(folder)
    stage = folder.parent.name
    if manifest is None:
        return f"delete the folder and run {STAGES[stage].command} again"
    if CHECKPOINT in manifest["inputs"]:
        return "import it anew: ris import-checkpoint FILE --force"
    words = [STAGES[stage].command]
    for name, value in manifest["flags"].items():
        if stage == "step2":  # its flag is --oracle
            words += ["--oracle"] if value == "true" else []
        elif stage != "scores":  # all its rows are made by one command
            words.append(f"--{name} {value}" if isinstance(value, str) else f"--{'' if value else 'no-'}{name}")
    words += [f"--seed {manifest['seed']}"] if manifest["seed"] else []
    words += [f"--precision {manifest['precision']}"] if manifest["precision"] != "fp32" else []
    return f"make it anew with its configuration: {command_line(options, ' '.join([*words, '--force']))}"


def _remake(
    options: StageOptions,
    folder: Path,
    manifest: dict[str, Any],
    files: Sequence[str],
    remake: "Remake",
    scratch: Path,
) -> None:
    """Makes the files anew in `scratch` and puts them into the artifact, all of them or none."""
    _check_same(options, folder, manifest)
    shutil.copytree(folder, scratch, ignore=lambda _, names: [name for name in names if name in RECORDS])
    for file in files:
        (scratch / file).unlink(missing_ok=True)
    device = manifest["host"].get("device", "auto") if options.device == "auto" else options.device
    own = replace(options, seed=manifest["seed"], precision=manifest["precision"], device=device)
    say(options, f"{folder}: making {len(files)} files anew: {', '.join(files[:5])}{' …' if len(files) > 5 else ''}")
    remake(own, folder, manifest, files, Work(scratch, resumed=True))
    contents = {file: (scratch / file).read_bytes() for file in files if (scratch / file).is_file()}
    for file in files:
        if file not in contents or hashlib.sha256(contents[file]).hexdigest() != recorded_checksum(folder, file):
            raise RisError(
                f"{folder}: {file} does not come out as it was published (another machine, another number of "
                f"threads, or images that changed); {_anew(options, folder)}"
            )
    for file, data in contents.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / file, data)


def _check_same(options: StageOptions, folder: Path, manifest: dict[str, Any]) -> None:
    """None where code, annotations and inputs are those that the artifact was made with; else RisError."""
    now: dict[str, Any] = {"code_version": STAGES[manifest["stage"]].code_version}
    now["inputs"] = manifest["inputs"] | data_inputs(options, manifest["stage"], manifest["flags"])
    changed = differences(manifest, now)
    if changed:
        raise RisError(f"{folder}: cannot be repaired, {'; '.join(changed)}; {_anew(options, folder)}")
    for source in sources_of(folder, manifest).values():
        if not source.path.is_dir():
            raise RisError(
                f"{folder}: cannot be repaired without {source.path}, which is gone; {_anew(options, folder)}"
            )
        check_whole(source.path)


def sources_of(folder: Path, manifest: dict[str, Any]) -> dict[str, Artifact]:
    """The artifacts that this one was made from, by name."""
    stages = folder.parent.parent
    sources = {}
    for name, digest in manifest["inputs"].items():
        if name not in NO_ARTIFACTS:
            path = stages / name.partition("/")[0] / digest
            sources[name] = Artifact(path, load_manifest(path) or {})
    return sources


def _remake_responses(
    options: StageOptions, folder: Path, manifest: dict[str, Any], files: Sequence[str], work: Work
) -> None:
    from ris_pipeline.config import ResponsesConfig
    from ris_pipeline.networks.load import config_from_manifest
    from stages.dump_responses import fill, load_networks

    # Batches of another size round otherwise: with those of then, the bytes are the same.
    configuration = manifest["configuration"] | manifest.get("speed", {})
    config = config_from_manifest(ResponsesConfig, manifest | {"configuration": configuration})
    networks = load_networks(options, config, sources_of(folder, manifest)["step1"])
    fill(options, work, open_dataset(options, manifest["flags"]["split"]), networks, config)


def _remake_pseudolabels(
    options: StageOptions, folder: Path, manifest: dict[str, Any], files: Sequence[str], work: Work
) -> None:
    from ris_pipeline.config import PseudolabelConfig
    from ris_pipeline.maps.store import ResponseStore
    from ris_pipeline.networks.irnet import WEIGHTS
    from ris_pipeline.networks.load import config_from_manifest
    from ris_pipeline.training.checkpoints import METRICS
    from stages.make_pseudolabels import SPLIT, fill

    if {WEIGHTS, METRICS} & set(files):  # one training leaves both
        for name in (WEIGHTS, METRICS):
            (work.path / name).unlink(missing_ok=True)
    (responses,) = sources_of(folder, manifest).values()
    dataset, store = open_dataset(options, SPLIT), ResponseStore.open(responses.path / f"{SPLIT}.zarr")
    fill(options, work, dataset, store, config_from_manifest(PseudolabelConfig, manifest))


def _remake_scores(
    options: StageOptions, folder: Path, manifest: dict[str, Any], files: Sequence[str], work: Work
) -> None:
    from ris_pipeline.config import ScoreConfig
    from ris_pipeline.networks.load import config_from_manifest
    from stages.score import SCORED, Job, fill, open_scored

    config = config_from_manifest(ScoreConfig, manifest)
    identity = {key: manifest[key] for key in IDENTITY if key in manifest and key != "code_version"}
    request = Request(runs=options.runs, **identity)
    scored = next(one for one in SCORED if one.name == manifest["flags"]["scored"])
    source = next(iter(sources_of(folder, manifest).values()), None)
    job = Job(scored, manifest["flags"]["split"], source, request)
    fill(options, job, open_scored(options, job.split, config), config, work)


Remake = Callable[[StageOptions, Path, dict[str, Any], Sequence[str], Work], None]
_REMAKE: dict[str, Remake] = {
    "responses": _remake_responses,
    "pseudolabels": _remake_pseudolabels,
    "scores": _remake_scores,
}
