"""The networks of a configuration, with fresh or trained weights."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import IRNET_WEIGHTS
from ris_pipeline.config import PseudolabelConfig, Step1Config, Step2Config
from ris_pipeline.errors import RisError
from ris_pipeline.networks.backbones import (
    TIMM_NAMES,
    ImageEncoder,
    build_image_encoder,
    load_timm_network,
)
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.irnet import ClipStages, IRNet, ResNetStages, StageBackbone
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.networks.weights.clip_weights import copy_tensors, load_clip, read_weights
from ris_pipeline.networks.weights.released import Released, read_released, translate_irn


def build_encoders(config: Step1Config | Step2Config, *, trained: bool) -> tuple[Clip, ImageEncoder]:
    """The CLIP and the image encoder of a configuration; trained: their weights come from a checkpoint anyway."""
    clip = load_clip(config.clip, None if trained else config.clip_weights)
    if config.image_encoder is None:
        return clip, clip
    weights = None if trained else config.image_encoder_weights
    return clip, build_image_encoder(config.image_encoder, weights, clip)


def build_aux(config: Step1Config) -> Clip:
    """The frozen CLIP of the calibration loss and of PRMS, in evaluation mode."""
    aux = load_clip(config.aux_clip, config.aux_weights)
    return aux.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def build_step1(config: Step1Config, weights: Path | None = None, *, init: Path | None = None) -> Step1:
    """Return Step-1 with the encoders' weights of the configuration, or all weights from a file.

    `weights`: of a trained network that is to answer. `init`: those that a training starts from (`warm_start`).
    """
    has_file = weights is not None or init is not None
    network = Step1(*build_encoders(config, trained=has_file), hidden=config.hidden)
    if not has_file and config.project_from_clip:
        network.project_from_clip()
    if init is not None:
        warm_start(network, init)
    _prepare(network, config, weights)
    return network


def build_step2(
    config: Step2Config, weights: Path | None = None, step1: Path | None = None, *, init: Path | None = None
) -> Step2:
    """Return Step-2 with the encoders' weights of the configuration, or all weights from a file, as `build_step1`.

    `step1`: weights of Step-1 whose encoders it starts with. Raises RisError where they are other encoders.
    """
    w = config.decoder_width
    has_file = weights is not None or init is not None
    network = Step2(*build_encoders(config, trained=has_file), widths=(w, 2 * w, 4 * w, 8 * w))
    if step1 is not None:
        tensors = read_weights(step1).tensors
        for name in ("clip", "image_encoder"):
            encoder = getattr(network, name)
            if encoder is not None:
                own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
                copy_tensors(encoder, own, step1)
    if init is not None:
        warm_start(network, init)
    _prepare(network, config, weights)
    return network


def warm_start(network: Step1 | Step2, file: Path) -> None:
    """Copy all weights of a trained network of the same kind and sizes: one of ours, or one that TRIS released.

    Raises RisError where the file holds another network.
    """
    tensors = read_weights(file).tensors
    if not any(name.startswith("clip.model.") for name in tensors):
        tensors = read_released(file, "tris-step1" if isinstance(network, Step1) else "tris-step2").tensors
    copy_tensors(network, tensors, file)


def build_released(released: Released, file: Path) -> Step1 | Step2:
    """The network of a checkpoint that TRIS released, read from `file`. RisError for one of another kind."""
    network: Step1 | Step2
    if isinstance(released.config, Step1Config):
        network = Step1(*build_encoders(released.config, trained=True), hidden=released.config.hidden)
    elif isinstance(released.config, Step2Config):
        network = Step2(*build_encoders(released.config, trained=True))
    else:
        raise RisError(f"{file}: a checkpoint of kind {released.kind}, which does not segment; give one of TRIS")
    _take_over(network, released.tensors, file)
    return network


def _prepare(network: Step1 | Step2, config: Step1Config | Step2Config, weights: Path | None) -> None:
    network.freeze_levels(config.frozen_levels)
    if weights is not None:
        _take_over(network, read_weights(weights).tensors, weights)


def _take_over(network: Step1 | Step2, tensors: dict[str, Tensor], file: Path) -> None:
    copy_tensors(network, tensors, file)
    # Convolutions on a CPU are up to twice as fast with channels last.
    network.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def config_from_manifest(cls: type[Any], manifest: dict[str, Any]) -> Any:
    """The configuration that made an artifact."""
    known = {field.name for field in fields(cls)}
    return cls(**{key: value for key, value in manifest["configuration"].items() if key in known})


def load_stages(name: str, weights: str | None) -> StageBackbone:
    """Return the ResNet called `name`, a CLIP's or timm's, in five stages; `weights` as for either, None: random."""
    if name in TIMM_NAMES:
        return ResNetStages(load_timm_network(name, weights))
    return ClipStages(load_clip(name, weights))


def build_irnet(config: PseudolabelConfig) -> IRNet:
    """IRNet on the configuration's backbone, a CLIP-ResNet or a timm ResNet; heads fresh, or all of it given."""
    net = IRNet(load_stages(config.irn_backbone, config.irn_weights if config.irnet is None else None))
    if config.irnet is not None:
        path = Path(config.irnet)
        file = path / IRNET_WEIGHTS if path.is_dir() else path
        copy_tensors(net, translate_irn(read_weights(file).tensors, file), file)
    return net


def load_irnet(labels: Artifact, device: torch.device) -> IRNet:
    """Return the IRNet that refined the pseudo-labels of an artifact, in evaluation mode."""
    config = config_from_manifest(PseudolabelConfig, labels.manifest)
    # Learnt there, its file holds the backbone's weights too: the original ones need not be fetched again.
    net = build_irnet(replace(config, irn_weights=None))
    if config.irnet is None:
        net.load_state_dict(load_file(labels.path / IRNET_WEIGHTS))
    return net.to(device).eval()
