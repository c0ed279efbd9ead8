"""`ris status --verify` and `--repair`: what is damaged of the artifacts, and what is done about it."""

from pathlib import Path

from ris_pipeline.artifacts.find import list_artifacts
from ris_pipeline.artifacts.layout import CHECKPOINT, FILES, STAGES
from ris_pipeline.artifacts.locks import hold
from ris_pipeline.artifacts.publish import withdraw
from ris_pipeline.artifacts.verify import SURPLUS, Damage, find_damage, load_manifest, restore_records
from ris_pipeline.errors import RisError
from stages.common import command_line
from stages.options import StageOptions, card_of, say
from stages.progress import progress

RESUMABLE = ("responses", "pseudolabels", "scores")  # stages that go on from what is whole
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
    """Return what is still damaged after mending.

    A manifest or table of files is restored from the others. An artifact whose stage can go on is taken out of
    publication: its damaged files are removed, and its command, which is named, makes them again. A training cannot be
    repeated in part: it is left as it is, and named with its command.
    """
    left = {}
    for folder in damages:
        try:
            with hold(folder.with_name(f"{folder.name}.lock")):
                say(options, f"{folder}: {_mend(options, folder)}")
        except RisError as error:
            say(options, str(error))
            left[folder] = find_damage(folder)
    return left


def _mend(options: StageOptions, folder: Path) -> str:
    """What was done to the artifact, in words; RisError where that is not for a machine to do."""
    restored = restore_records(folder)
    damages = find_damage(folder)
    if not damages:
        return f"mended: {', '.join(restored)}"
    files = [damage.file for damage in damages if damage.fault != SURPLUS]
    if not files:
        raise RisError(f"{folder}: {'; '.join(map(str, damages))}")
    manifest = load_manifest(folder)
    if manifest is None or FILES in files:
        raise RisError(f"{folder}: its records cannot be restored from what is left; {_again(options, folder)}")
    if manifest["stage"] not in RESUMABLE or CHECKPOINT in manifest["inputs"]:
        raise RisError(
            f"{folder}: {', '.join(files)}: a training cannot be repeated in part; {_again(options, folder)}"
        )
    command = _again(options, folder)
    withdraw(folder, files)
    shown = ", ".join(files[:5]) + (" …" if len(files) > 5 else "")
    return f"taken out of publication, {len(files)} damaged files removed: {shown}; to make them again, {command}"


def _again(options: StageOptions, folder: Path) -> str:
    """The command that makes the artifact again, as it was made."""
    manifest = load_manifest(folder)
    stage = folder.parent.name
    if manifest is None:
        return f"delete the folder and run {STAGES[stage].command} again"
    if CHECKPOINT in manifest["inputs"]:
        return "import it again: ris import-checkpoint FILE --force"
    words = [STAGES[stage].command]
    for name, value in manifest["flags"].items():
        if stage == "step2":  # its flag is --oracle
            words += ["--oracle"] if value == "true" else []
        elif stage != "scores":  # all its rows are made by one command
            words.append(f"--{name} {value}" if isinstance(value, str) else f"--{'' if value else 'no-'}{name}")
    words += [f"--seed {manifest['seed']}"] if manifest["seed"] else []
    words += [f"--precision {manifest['precision']}"] if manifest["precision"] != "fp32" else []
    words += [f"--set {key}={value}" for key, value in manifest.get("chosen", {}).items()]
    words += ["--force"] if stage not in RESUMABLE else []
    return f"run: {command_line(options, ' '.join(words))}"
