"""A released checkpoint → an artifact, as if its stage had made it here."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.artifacts.files import replace_folder, write_json
from ris_pipeline.artifacts.find import find, load_artifact
from ris_pipeline.artifacts.identity import Artifact, Request, digest_file
from ris_pipeline.artifacts.layout import CHECKPOINT, CLIP_CONFIG, IRNET_WEIGHTS, MANIFEST, SOURCE, WEIGHTS
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.chain.context import Context
from ris_pipeline.config import Step1Config, Step2Config, resolve
from ris_pipeline.errors import MadeMeanwhileError, RisError

if TYPE_CHECKING:
    from ris_pipeline.networks.weights.released import Kind, Released

_STAGES = {"tris-step1": "step1", "tris-step2": "step2", "irn": "irnet", "clip": "clip"}
_FLAGS = {"tris-step2": {"labels": "pseudo"}}
# What the file shows of the trained network, and what it leaves to the configuration.
_TOLD = {"step1": ("clip", "image_encoder", "hidden"), "step2": ("clip", "image_encoder", "decoder_width")}
_CHOSEN = {"step1": ("input_size", "aux_clip", "aux_weights"), "step2": ("input_size",)}


def import_checkpoint(context: Context, file: Path, *, out: Path | None = None) -> Artifact | None:
    """Write the artifact into the new folder `out`, or as the latest of the data set's stage, and return it.

    `file`: or the name of one of TRIS's checkpoints, which is fetched. Its entries tell what it is. Only a dry run
    returns None. Raises RisError where the file is no such checkpoint.
    """
    from ris_pipeline.networks.weights.checkpoints import find_checkpoint
    from ris_pipeline.networks.weights.released import read_released

    file = find_checkpoint(file, context.console)
    released = read_released(file)
    stage = _STAGES[released.kind]
    if out is None:
        _check_home(context, file, released.kind)
    request = Request(
        runs=context.runs,
        dataset=context.card.name if out is None else "",
        stage=stage,
        configuration=_configure(context, stage, released, with_card=out is None),
        inputs={CHECKPOINT: digest_file(file)},
        flags=_FLAGS.get(released.kind, {}),
    )
    if out is not None:
        _write_folder(context, request, file, released, out)
        return load_artifact(out)
    if context.is_due(request):
        with suppress(MadeMeanwhileError), publish(request, force=context.force) as work:
            _write(work, file, released)
    return find(request)


def _check_home(context: Context, file: Path, kind: Kind) -> None:
    if kind in ("irn", "clip"):
        use = "make-pseudolabels --set irnet=DIR" if kind == "irn" else "train-step1 --set clip=DIR"
        raise RisError(f"{file}: a checkpoint of kind {kind} belongs to no data set; give --out DIR, then: ris {use}")
    if context.card.generate:
        raise RisError(
            f"{file}: was not trained on {context.card.name}; name its data set by --dataset, or a folder by --out"
        )


def _configure(context: Context, stage: str, released: Released, *, with_card: bool) -> dict[str, Any]:
    """Return the configuration of the network: what the file shows, the rest from card, --config and --set."""
    chosen = _CHOSEN.get(stage, ())
    for key in context.assignments:
        if key not in chosen:
            raise RisError(f"--set {key}: an import takes {', '.join(chosen) or 'no configuration'} only")
    if not isinstance(released.config, Step1Config | Step2Config):
        return {}
    if with_card:
        config = context.resolve(type(released.config), stage)
    else:
        config = resolve(type(released.config), context.find_chosen(stage))
    told, own = asdict(released.config), asdict(config)
    return {**{key: told[key] for key in _TOLD[stage]}, **{key: own[key] for key in chosen}}


def _write_folder(context: Context, request: Request, file: Path, released: Released, out: Path) -> None:
    """Write the artifact beside `out`, then rename it."""
    if _is_same(out, request) and not context.force:
        context.say(f"{out}: up to date, made of the same file")
    elif out.exists() and not ((out / MANIFEST).is_file() and context.force):
        raise RisError(f"{out}: exists already; give a new folder, or --force to replace an artifact")
    elif context.dry_run:
        context.say(f"{out}: would be written")
    else:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
                there = replace(request, runs=Path(scratch))
                with publish(there) as work:
                    _write(work, file, released)
                replace_folder(out, there.path)
        except OSError as error:
            raise RisError(f"{out}: cannot write there: {error.strerror or error}") from error


def _is_same(out: Path, request: Request) -> bool:
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(manifest.get(key) == value for key, value in request.identity.items())


def _write(work: Work, file: Path, released: Released) -> None:
    """Write the weights, and the name of the file they come from."""
    from ris_pipeline.training.checkpoints import save_weights

    # Cloned: tensors of a checkpoint may share their memory, which safetensors refuses.
    tensors = {name: value.clone() for name, value in released.tensors.items()}
    save_weights(work.path / (IRNET_WEIGHTS if released.kind == "irn" else WEIGHTS), tensors)
    if released.clip_config is not None:
        write_json(work.path / CLIP_CONFIG, {"model_cfg": released.clip_config})
    write_json(work.path / SOURCE, {"file": file.name, "kind": released.kind})
    work.counts |= {"entries": len(tensors), "values": sum(value.numel() for value in tensors.values())}
