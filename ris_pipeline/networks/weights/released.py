"""The checkpoints that TRIS and IRNet released, and OpenAI's CLIP, under our own names.

Each is compared entry by entry with the network that it is for, before anything is made of it:

- TRIS, Step-1 and Step-2: `{"model": state_dict, …}`, where `backbone.*` is a whole CLIP in OpenAI's naming.
- IRNet, `res50_irn.pth`: a state dict that names the same tensors two or three times (`resnet50.conv1.weight`,
  `stage1.0.weight`, `backbone.0.0.weight`) and holds the index tables of its loss.
- OpenAI's CLIP, a TorchScript archive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any, Literal, get_args

import open_clip
import timm
import torch
from torch import Tensor, nn

from ris_pipeline.config import PseudolabelConfig, Step1Config, Step2Config
from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.networks.parts.stages import ResNetStages
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.networks.weights.tensors import Weights, describe_faults, first_few, read_weights

Kind = Literal["tris-step1", "tris-step2", "irn", "clip"]

_SIGNS: dict[Kind, tuple[str, ...]] = {  # what only the entries of that kind start with, the first kind that fits
    "tris-step1": ("vis_project.", "lan_project.", "attn_fusion."),
    "tris-step2": ("attention", "reduced_c", "final_seg"),
    "irn": ("fc_edge", "fc_dp"),
    "clip": ("visual.", "transformer.resblocks."),
}
_INDEX_TABLES = re.compile(r"path_indices\d+|disp_target")
_SECOND_NAMES = (  # of IRNet's tensors, each with the first name of the same tensor
    (re.compile(r"(?:backbone\.0|stage1)\.0\."), "resnet50.conv1."),
    (re.compile(r"(?:backbone\.0|stage1)\.1\."), "resnet50.bn1."),
    *((re.compile(rf"(?:backbone\.{i}|stage{i + 1})\.0\."), f"resnet50.layer{i}.") for i in range(1, 5)),
    (re.compile(r"(?:dp_layers\.6|fc_dp7)\.4\."), "mean_shift."),
    *((re.compile(rf"edge_layers\.{i}\."), f"fc_edge{i + 1}.") for i in range(6)),
    *((re.compile(rf"dp_layers\.{i}\."), f"fc_dp{i + 1}.") for i in range(7)),
)


@dataclass(frozen=True, slots=True)
class Released:
    """A released checkpoint: `tensors` has all entries of its network, by our names.

    `config` says which network it is; what the file cannot tell (training, input size) is the paper's.
    For CLIP, `clip_config` is its configuration in open_clip's format.
    """

    kind: Kind
    tensors: dict[str, Tensor]
    config: Step1Config | Step2Config | PseudolabelConfig | None
    clip_config: dict[str, Any] | None = None


def read_released(path: Path, kind: Kind | None = None) -> Released:
    """Return the released checkpoint in a file; its kind is recognised by its entries where it is not given.

    Raises RisError where the file is damaged, holds anything but tensors, is of no known or of another kind, and,
    naming the first of each, where entries are missing, surplus or misshapen.
    """
    weights = read_weights(path)
    found = recognise(weights.tensors)
    if any(name.startswith("clip.model.") for name in weights.tensors):
        raise RisError(f"{path}: already imported; give the folder that it is in")
    if found is None:
        names = first_few(list(weights.tensors)) or "none"
        raise RisError(f"{path}: no checkpoint of {', '.join(_SIGNS)}; its entries: {names}")
    if kind not in (None, found):
        raise RisError(f"{path}: a checkpoint of kind {found}; give one of kind {kind}")
    if found == "clip":
        return _clip(path, weights)
    if found == "irn":
        return _irn(path, weights.tensors)
    return _tris(path, found, weights.tensors)


def recognise(tensors: Mapping[str, Tensor]) -> Kind | None:
    """Return the kind of checkpoint that has entries of these names, None for an unknown kind."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    for kind in kinds:
        if any(name.startswith(_SIGNS[kind]) for name in tensors):
            return kind
    return None


def translate_irn(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a released IRNet by our names, each once; others as they are.

    Raises RisError where two names of one tensor have different values.
    """
    ours = {}
    for name, value in tensors.items():
        if _INDEX_TABLES.fullmatch(name):
            continue
        first = _first_name(name)
        if first != name and first in tensors and not _are_equal(value, tensors[first]):
            raise RisError(f"{path}: {name} and {first} differ, but are one tensor in IRNet; download the file again")
        ours[first.replace("resnet50.", "backbone.resnet.", 1)] = value
    return ours


def _tris(path: Path, kind: Kind, tensors: dict[str, Tensor]) -> Released:
    backbone = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    clip_name = _find_clip_name(backbone)
    config: Step1Config | Step2Config
    network: nn.Module
    with torch.device("meta"):  # sizes without values
        clip = Clip.from_config(dict(open_clip.get_model_config(clip_name)))
        if kind == "tris-step1":
            config = Step1Config(clip=clip_name, hidden=_find_hidden(tensors))
            network = Step1(clip, clip, hidden=config.hidden)
        else:
            config = Step2Config(clip=clip_name)
            network = Step2(clip, clip, widths=config.widths)
    expected = {name.replace("clip.model.", "backbone.", 1): t for name, t in network.state_dict().items()}
    _compare(path, kind, expected, tensors)
    return Released(kind, {name.replace("backbone.", "clip.model.", 1): t for name, t in tensors.items()}, config)


def _irn(path: Path, tensors: dict[str, Tensor]) -> Released:
    with torch.device("meta"):
        network = IRNet(ResNetStages(timm.create_model("resnet50", num_classes=0)))
    expected = {name.replace("backbone.resnet.", "resnet50.", 1): t for name, t in network.state_dict().items()}
    ours = translate_irn(tensors, path)
    # by the released names in the message; a second name that fits stands for the first one
    _compare(path, "irn", expected, {name.replace("backbone.resnet.", "resnet50.", 1): t for name, t in ours.items()})
    return Released("irn", ours, PseudolabelConfig())


def _clip(path: Path, weights: Weights) -> Released:
    if not weights.is_openai:
        raise RisError(f"{path}: not OpenAI's own file, its activation is not known; name it as clip_weights")
    config = dict(open_clip.get_model_config(_find_clip_name(weights.tensors)))
    with torch.device("meta"):
        network = Clip.from_config(config).model
    _compare(path, "clip", network.state_dict(), weights.tensors)
    return Released("clip", weights.tensors, None, config)


def _compare(path: Path, kind: Kind, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    faults = describe_faults(expected, found)
    if faults:
        raise RisError(f"{path}: not a complete checkpoint of kind {kind} ({faults}); download it again")


def _find_hidden(tensors: Mapping[str, Tensor]) -> int:
    """Return the width that most of Step-1's own entries have: a single misshapen entry does not decide it."""
    widths = [t.shape[0] for name, t in tensors.items() if name.startswith(_SIGNS["tris-step1"]) and t.ndim]
    return int(mode(widths)) if widths else Step1Config().hidden


def _find_clip_name(tensors: Mapping[str, Tensor]) -> str:
    """Return the open_clip model with QuickGELU whose sizes are nearest to those of a CLIP in OpenAI's naming.

    The nearest, not an equal one: a damaged checkpoint is still compared with the right model, so that the error names
    the entry that is missing or misshapen.
    """
    sizes = _sizes(tensors)
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models() if "quickgelu" in name}
    shared = {
        name: sum(sizes[key] == value for key, value in _sizes_of_config(config).items())
        for name, config in configs.items()
        if isinstance(config["vision_cfg"]["layers"], list) == isinstance(sizes["layers"], list)
    }
    return str(max(shared, key=shared.__getitem__))


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return layers, widths and lengths, as OpenAI's own loader tells them from the shapes."""
    text = {
        "embed_dim": _side(tensors, "text_projection", 1),
        "words": _side(tensors, "ln_final.weight", 0),
        "text_layers": _count(tensors, "transformer.resblocks"),
        "context": _side(tensors, "positional_embedding", 0),
    }
    if "visual.proj" in tensors:
        grid = round((_side(tensors, "visual.positional_embedding", 0) - 1) ** 0.5)
        patch = _side(tensors, "visual.conv1.weight", 2)
        vision = {"layers": _count(tensors, "visual.transformer.resblocks"), "patch": patch, "size": grid * patch}
        return {**text, **vision, "width": _side(tensors, "visual.conv1.weight", 0)}
    layers = [_count(tensors, f"visual.layer{i}") for i in range(1, 5)]
    grid = round(max(_side(tensors, "visual.attnpool.positional_embedding", 0) - 1, 0) ** 0.5)
    width = _side(tensors, "visual.layer1.0.conv1.weight", 0)
    return {**text, "layers": layers, "patch": None, "size": grid * 32, "width": width}


def _sizes_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    return {
        "embed_dim": config["embed_dim"],
        "words": text.get("width"),
        "text_layers": text.get("layers"),
        "context": text.get("context_length"),
        "layers": vision.get("layers"),
        "patch": vision.get("patch_size"),
        "size": vision.get("image_size"),
        "width": vision.get("width"),
    }


def _side(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    return int(tensors[name].shape[axis]) if name in tensors and tensors[name].ndim > axis else 0


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) + 1 :].partition(".")[0] for name in tensors if name.startswith(f"{prefix}.")})


def _first_name(name: str) -> str:
    for pattern, first in _SECOND_NAMES:
        match = pattern.match(name)
        if match:
            return first + name[match.end() :]
    return name


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)
