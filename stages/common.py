"""What the commands share: their configuration, data set, device and artifacts."""

import functools
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ris_pipeline.artifacts.find import explain, find, find_latest
from ris_pipeline.artifacts.freshness import describe_other_data
from ris_pipeline.artifacts.identity import Artifact, Request, digest, digest_file, label_of
from ris_pipeline.artifacts.layout import INIT, NO_ARTIFACTS, STAGES, VALIDATION
from ris_pipeline.artifacts.publish import point_latest, remove_leftovers
from ris_pipeline.artifacts.verify import check_whole
from ris_pipeline.config import CONFIGS, load_config_file, parse_assignments, resolve
from ris_pipeline.errors import RisError, did_you_mean, suggest_path
from stages.options import StageOptions, card_of, emit, is_silent, say

if TYPE_CHECKING:
    import torch

    from ris_pipeline.datasets import Dataset
    from ris_pipeline.datasets.inventory import Inventory

C = TypeVar("C")
MANY_FILES = 1000  # that take a while to read


def chosen_of(options: StageOptions, stage: str) -> dict[str, Any]:
    """Return what --config and --set say of a stage."""
    file = load_config_file(options.config, stage) if options.config else {}
    return {**file, **parse_assignments(options.set or ())}


def resolve_config(options: StageOptions, cls: type[C], stage: str, **flags: Any) -> C:
    """The configuration of `stage`: defaults < card < --config file < --set < the command's own flags."""
    card = card_of(options)
    for name in card.config:
        if name not in CONFIGS:
            raise RisError(f"card {card.name}: unknown table [config.{name}]{did_you_mean(name, CONFIGS)}")
    return resolve(cls, card.config.get(stage, {}), chosen_of(options, stage), flags)


def open_dataset(options: StageOptions, split: str, *, with_images: bool = False) -> "Dataset":
    """One split of the data set of `options`; says what is left out of it or looks odd.

    with_images: RisError where any of its image files is missing or empty, before any work.
    """
    from ris_pipeline.datasets import load_dataset

    if with_images:
        inventory_of(options).check_files(split)
    dataset = load_dataset(card_of(options), options.data_root, split)
    for remark in dataset.remarks:
        say(options, remark)
    return dataset


def splits_of(options: StageOptions, chosen: Sequence[str] | None) -> list[str]:
    """The `chosen` splits, or all that have refs; RisError naming the known ones for another.

    Only a split of no expected size, as own pairs have, is opened to see whether it is empty.
    """
    card = card_of(options)
    for split in chosen or ():
        card.check_split(split)
    return list(chosen or (split for split in card.splits if card.splits[split] or _has_refs(options, split)))


def _has_refs(options: StageOptions, split: str) -> bool:
    from ris_pipeline.datasets.load import list_files, read_split

    list_files(card_of(options), options.data_root)
    reading = read_split(card_of(options), options.data_root, split)
    return bool(reading.refs or reading.faults)


def data_digest(options: StageOptions) -> str:
    """A digest of the data set: names and contents of its annotation files, and of the list of what is left out.

    RisError naming missing files.
    """
    return digest(inventory_of(options).annotations())


def images_digest(options: StageOptions, split: str) -> str:
    """A digest of the images of a split, and of the masks that are files. RisError where its records are faulty."""

    def report(n: int) -> None:
        if n > MANY_FILES:
            say(options, f"{card_of(options).name} {split}: reading {n:,} images, once")

    return inventory_of(options).images(split, report)


def inventory_of(options: StageOptions) -> "Inventory":
    """The files of the data set, and what was found of them by earlier commands."""
    from ris_pipeline.datasets.inventory import Inventory

    card = card_of(options)
    return Inventory(card, options.data_root, options.runs / card.name / "data.json")


def input_of(options: StageOptions, stage: str, **flags: str | bool) -> Artifact:
    """The latest artifact of `stage` with these flags; RisError with the command to run if there is none."""
    dataset = card_of(options).name
    artifact = find_latest(options.runs, dataset, stage, **flags)
    if artifact is None:
        words = [STAGES[stage].command]
        for name, value in flags.items():
            words.append(f"--{name} {value}" if isinstance(value, str) else f"--{label_of({name: value})}")
        what = f"{stage} ({label_of(flags)})" if flags else stage
        command = command_line(options, " ".join(words))
        # Before the command, which ends the line so that it can be copied.
        hint = suggest_path(options.runs)
        raise RisError(f"{options.runs / dataset}: no finished {what} yet{hint}; run: {command}")
    check_lineage(options, artifact)
    return artifact


def check_lineage(options: StageOptions, artifact: Artifact) -> None:
    """Raise RisError where what is in an artifact, or behind it, may be of other sentences, objects or images by now.

    An artifact knows sentences and objects by their ids. After a change of the annotations they may be others.
    """
    name = card_of(options).name
    data = functools.cache(lambda: data_digest(options))
    images = functools.cache(lambda split: images_digest(options, split))
    line = describe_other_data(artifact, options.runs, name, data, images)
    if line is None:
        return
    stage = str(artifact.manifest["stage"])
    if stage in ("responses", "pseudolabels"):
        what = "" if line.startswith(artifact.name) else f"{artifact.name} is out of date: "
        raise RisError(f"{what}{line}; make it again: {command_line(options, STAGES[stage].command)}")
    say(options, f"{artifact.name} is stale: {line}")


def command_line(options: StageOptions, command: str) -> str:
    """A command as it has to be typed for the data and places of `options`; what is the default is left out."""
    default = StageOptions()
    places = (
        ("--dataset", options.dataset, default.dataset),
        ("--data-root", options.data_root, default.data_root),
        ("--runs", options.runs, default.runs),
        ("--config", options.config, default.config),
    )
    words = [word for name, value, usual in places if value != usual for word in (name, str(value))]
    return f"{command} {shlex.join(words)}".rstrip()


def request_of(
    options: StageOptions,
    stage: str,
    config: Any,
    *,
    inputs: Sequence[Artifact] = (),
    init: Path | None = None,
    flags: Mapping[str, str | bool] | None = None,
) -> Request:
    """What `stage` is asked to make from its resolved `config`, the artifacts and weights it reads and the data set."""
    start = {} if init is None else {INIT: digest_file(init)}
    return Request(
        runs=options.runs,
        dataset=card_of(options).name,
        stage=stage,
        configuration=asdict(config),
        inputs={
            **data_inputs(options, stage, config, flags or {}),
            **start,
            **{artifact.name: artifact.digest for artifact in inputs},
        },
        flags=dict(flags or {}),
        seed=options.seed,
        precision=options.precision,
        chosen=chosen_of(options, stage),
        # As torchrun tells it; asking torch would cost the seconds of its import.
        n_ranks=int(os.environ.get("WORLD_SIZE", 1)) if stage in ("step1", "step2") else 1,
    )


def limit_flags(limit: int | None) -> dict[str, str | bool]:
    """The flags of a training on the first `limit` refs: a variant, which no other stage takes for the whole."""
    return {} if limit is None else {"limit": f"first-{limit}"}


def data_inputs(options: StageOptions, stage: str, config: Any, flags: Mapping[str, str | bool]) -> dict[str, str]:
    """Digests of the annotations, the split's images and those that a training is validated on; a report has none."""
    inputs = {"data": data_digest(options)}
    if stage != "report":
        inputs["images"] = images_digest(options, str(flags.get("split", "train")))
    if getattr(config, "validate", ""):
        inputs[VALIDATION] = images_digest(options, config.validate)
    return inputs


def due(options: StageOptions, request: Request, why: str = "") -> bool:
    """True when the stage has to run; says on stderr why, or why not, and with which configuration.

    `why`: a reason to run although nothing of the request has changed. RisError where an artifact that it reads is
    damaged.
    """
    name = " ".join([request.stage, *(label_of({flag: value}) for flag, value in request.flags.items())])
    if not (options.dry_run or is_silent()):
        # Runs that are up to date may lie where nobody may write.
        with suppress(OSError):
            remove_leftovers(request)
    # Beside a finished artifact lies what was begun with --force and broke off: to be finished as well.
    found = None if options.force or why or request.partial.exists() else find(request)
    if found is not None:
        say(options, f"{name}: up to date, same configuration, inputs and code as {found.path.name}")
        if not options.dry_run:
            with suppress(OSError):
                point_latest(found)
        return False
    reason = "--force" if options.force else why or explain(request)
    say(options, f"{name}: {'would run' if options.dry_run else 'runs'} ({reason})")
    say(options, "  " + " ".join(f"{key}={value}" for key, value in request.configuration.items()))
    if not options.dry_run:
        # A flipped bit in weights or labels raises no error anywhere: it only makes another result.
        for source, its_digest in request.inputs.items():
            if source not in NO_ARTIFACTS:
                check_whole(request.runs / request.dataset / source.partition("/")[0] / its_digest)
    return not options.dry_run


def show(options: StageOptions, request: Request) -> None:
    """Prints where the artifact of `request` lies, or its manifest with --json; nothing before it is made."""
    artifact = find(request)
    if artifact is not None:
        emit(options, str(request.path), {**artifact.manifest, "path": str(request.path)})


def device_of(options: StageOptions) -> "torch.device":
    """The device to compute on. RisError where it is not usable, or not with the precision."""
    from ris_pipeline.process.device import find_device

    device = find_device(options.device)
    if options.precision == "fp16" and device.type != "cuda":
        raise RisError(f"--precision fp16 needs a CUDA device, and this one is {device.type}; use bf16 or fp32")
    return device
