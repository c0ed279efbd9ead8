"""The names of all files that stages leave on disk, and the table of the stages.

    runs/<dataset>/data.json                  what is known of the data set's files (`datasets.inventory`)
    runs/<dataset>/cache/                     images decoded once (`training.cache`); may be deleted at any time
    runs/<dataset>/<stage>/<digest>/          a finished artifact: it holds a manifest.json
    runs/<dataset>/<stage>/<digest>.partial/  being written, or left by a broken run for the next to resume
    runs/<dataset>/<stage>/latest             link to the artifact without flags that was asked for last
    runs/<dataset>/<stage>/latest-<label>     the same among those with equal flags, such as latest-val

docs/architecture.md says what the digest covers. Equal digest, equal result.

The manifest holds a checksum of itself and that of files.json, which has one of every other file. `verify` compares
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MANIFEST, FILES = "manifest.json", "files.json"
RECORDS = (MANIFEST, FILES)  # what an artifact holds beside its stage's files
RESUME = "resume.pt"  # the checkpoint of a training; removed when its artifact has been published
UNLISTED = (*RECORDS, RESUME, "manifest.copy.json")  # what files.json does not list; the last is of older artifacts

TRAIN_SPLIT = "train"  # that networks learn from, and the only one with pseudo-labels
WEIGHTS = "model.safetensors"  # of clip, step1, step2
CLIP_CONFIG = "open_clip_config.json"  # of clip
TRAINING_LOG = "metrics.jsonl"  # the log of a training, a line per step
IRNET_WEIGHTS = "irnet.safetensors"  # of refined pseudolabels, and of an imported IRNet
IMAGE_CACHE = "cache"  # folder beside the stages: images decoded once, where a training is asked for it
TARGETS = "targets"  # folder of a training on a teacher's maps: the labels made of them
SEEDS = "seeds"  # folder of refined pseudolabels: the labels that IRNet learns from
CONTACT_SHEET = "contact-sheet.png"  # of pseudolabels
SCORES, OUTCOMES = "scores.json", "outcomes.csv"  # of scores
REPORT, STAGE_ROWS = "report.html", "stages.json"  # of report
SOURCE = "source.json"  # of an import: where the weights come from

CHECKPOINT = "checkpoint"  # input of an artifact that was imported: the digest of the file it comes from
VALIDATION = "validation"  # input of a training: the digest of the images that it is validated on
INIT = "init"  # input of a training: the digest of the weights that it starts from
METHOD = "method"  # flag and input of what a compared method makes; the input has the version of its code too
ROUNDS = (2, 3)  # of labels that the Step-2 of the round before has made
PROPOSALS = "proposals"  # flag and input of pseudo-labels chosen among class-agnostic masks: the digest of their files
# The names of inputs that are no artifacts.
NO_ARTIFACTS = ("data", "images", VALIDATION, INIT, CHECKPOINT, METHOD, PROPOSALS)


def latest_name(label: str) -> str:
    """Return the name of the link to the latest artifact of a stage with this label, "" for none."""
    return f"latest-{label}" if label else "latest"


def flags_of_round(number: int) -> dict[str, str | bool]:
    """Return the flags of labels of a round, and of the Step-2 that learns from them; the first round has none."""
    return {} if number == 1 else {"round": f"round-{number}"}


def round_of(flags: Mapping[str, str | bool]) -> int:
    """Return the round of an artifact's flags."""
    return int(str(flags.get("round", "round-1")).removeprefix("round-"))


def store_path(responses: Path, split: str) -> Path:
    """Return where an artifact of responses keeps those of a split."""
    return responses / f"{split}.zarr"


def label_path(folder: Path, ref_id: int) -> Path:
    """Return where a folder of pseudo-labels or seeds keeps that of a ref."""
    return folder / f"{ref_id}.png"


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
    "responses": Stage("ris dump-responses", 2, ("batch_size",), speed=("batch_size",)),
    "pseudolabels": Stage("ris make-pseudolabels", 3, ("irn_batch",)),
    "step2": Stage("ris train-step2", 3, ("batch_size", "refs_per_image"), uses_precision=True),
    "scores": Stage("ris score", 3, uses_precision=True),
    "irnet": Stage("ris import-checkpoint", 1),
    "report": Stage("ris report", 9),
}


def command_of(stage: str, flags: Mapping[str, str | bool]) -> str:
    """Return the command that makes a stage's artifact with these flags: "ris train-step1 --method amr"."""
    words = [STAGES[stage].command]
    for name, value in flags.items():
        if name == "scored":  # all rows are made by one command
            continue
        if name == "labels":
            words += {"true": ["--oracle"], PROPOSALS: ["--proposals"]}.get(str(value), [])
        elif name == PROPOSALS:
            words += ["--proposals", "FOLDER"]
        elif isinstance(value, str):
            words.append(f"--{name} {value.removeprefix('first-').removeprefix('round-')}")
        else:
            words.append(f"--{'' if value else 'no-'}{name}")
    return " ".join(words)
