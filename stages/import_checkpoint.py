"""`ris import-checkpoint`: a released checkpoint → an artifact, as if its stage had made it here."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.artifacts.files import replace_folder, write_json
from ris_pipeline.artifacts.identity import Request, digest_file
from ris_pipeline.artifacts.layout import CHECKPOINT, CLIP_CONFIG, MANIFEST, SOURCE
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import Step1Config, Step2Config, load_config_file, parse_assignments, resolve
from ris_pipeline.errors import RisError
from stages.common import due, resolve_config, show
from stages.options import StageOptions, card_of, emit, say

if TYPE_CHECKING:
    from ris_pipeline.networks.weights.released import Kind, Released

_STAGES = {"tris-step1": "step1", "tris-step2": "step2", "irn": "irnet", "clip": "clip"}
_FLAGS = {"tris-step2": {"labels": "pseudo"}}
# What the file tells, and what it leaves to the configuration: of the trained network, not of its training.
_TOLD = {"step1": ("clip", "image_encoder", "hidden"), "step2": ("clip", "image_encoder", "decoder_width")}
_CHOSEN = {"step1": ("input_size", "aux_clip", "aux_weights"), "step2": ("input_size",)}


def run(options: StageOptions, file: Path, kind: "Kind | None", out: Path | None) -> None:
    """Write the artifact into the folder `out`, or under --runs as the latest of the data set's stage."""
    from ris_pipeline.networks.weights.released import read_released

    released = read_released(file, kind)
    stage = _STAGES[released.kind]
    if out is None:
        _check_home(options, file, released.kind)
    request = Request(
        runs=options.runs,
        dataset=card_of(options).name if out is None else "",
        stage=stage,
        configuration=_configure(options, stage, released, with_card=out is None),
        inputs={CHECKPOINT: digest_file(file)},
        flags=_FLAGS.get(released.kind, {}),
    )
    if out is not None:
        _write_folder(options, request, file, released, out)
        return
    if due(options, request):
        with publish(request, force=options.force) as work:
            _write(work, file, released)
    show(options, request)


def _check_home(options: StageOptions, file: Path, kind: "Kind") -> None:
    if kind in ("irn", "clip"):
        use = "make-pseudolabels --set irnet=DIR" if kind == "irn" else "train-step1 --set clip=DIR"
        raise RisError(f"{file}: a checkpoint of kind {kind} is of no data set; give --out DIR, then: ris {use}")
    if card_of(options).generate:
        raise RisError(
            f"{file}: was not trained on {options.dataset}; name its data set by --dataset, or a folder by --out"
        )


def _configure(options: StageOptions, stage: str, released: "Released", *, with_card: bool) -> dict[str, Any]:
    """The configuration of the network: what the file tells, and what it leaves to card, --config and --set."""
    chosen = _CHOSEN.get(stage, ())
    for key in parse_assignments(options.set or ()):
        if key not in chosen:
            raise RisError(f"--set {key}: an import takes {', '.join(chosen) or 'no configuration'} only")
    if not isinstance(released.config, Step1Config | Step2Config):
        return {}
    if with_card:
        config = resolve_config(options, type(released.config), stage)
    else:
        file = load_config_file(options.config, stage) if options.config else {}
        config = resolve(type(released.config), file, parse_assignments(options.set or ()))
    told, own = asdict(released.config), asdict(config)
    return {**{key: told[key] for key in _TOLD[stage]}, **{key: own[key] for key in chosen}}


def _write_folder(options: StageOptions, request: Request, file: Path, released: "Released", out: Path) -> None:
    """Write the artifact as the folder `out`, beside which it is made first."""
    if _is_same(out, request) and not options.force:
        say(options, f"{out}: up to date, made of the same file")
    elif out.exists() and not ((out / MANIFEST).is_file() and options.force):
        raise RisError(f"{out}: exists already; give a new folder, or --force to replace an artifact")
    elif options.dry_run:
        say(options, f"{out}: would be written")
        return
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
    emit(options, str(out), {**json.loads((out / MANIFEST).read_text(encoding="utf-8")), "path": str(out)})


def _is_same(out: Path, request: Request) -> bool:
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(manifest.get(key) == value for key, value in request.identity.items())


def _write(work: Work, file: Path, released: "Released") -> None:
    """Write the weights, and where they come from."""
    from ris_pipeline.artifacts.layout import IRNET_WEIGHTS, WEIGHTS
    from ris_pipeline.training.checkpoints import save_weights

    # Cloned: tensors of a checkpoint may share their memory, which safetensors refuses.
    tensors = {name: value.clone() for name, value in released.tensors.items()}
    save_weights(work.path / (IRNET_WEIGHTS if released.kind == "irn" else WEIGHTS), tensors)
    if released.clip_config is not None:
        write_json(work.path / CLIP_CONFIG, {"model_cfg": released.clip_config})
    write_json(work.path / SOURCE, {"file": file.name, "kind": released.kind})
    work.counts |= {"entries": len(tensors), "values": sum(value.numel() for value in tensors.values())}
