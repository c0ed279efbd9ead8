"""The networks by name and sizes, of a configuration, and as an artifact keeps them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import IRNET_WEIGHTS
from ris_pipeline.config import N_TOKENS, PseudolabelConfig, Step1Config, Step2Config, config_from_manifest
from ris_pipeline.networks.backbones import TIMM_NAMES, load_timm_encoder, load_timm_network
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.networks.parts.stages import ClipStages, ResNetStages, StageBackbone
from ris_pipeline.networks.referring import ImageEncoder, ReferringNetwork
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2, Widths
from ris_pipeline.networks.weights.clip_weights import load_clip
from ris_pipeline.networks.weights.released import read_released, translate_irn
from ris_pipeline.networks.weights.tensors import copy_tensors, read_weights

N = TypeVar("N", bound=nn.Module)
R = TypeVar("R", bound=ReferringNetwork)


def build_step1(
    clip: str,
    *,
    hidden: int,
    clip_weights: str | None = None,
    image_encoder: str | None = None,
    image_encoder_weights: str | None = None,
    n_tokens: int = N_TOKENS,
    weights: Path | None = None,
) -> Step1:
    """Return Step-1 on the CLIP called `clip`; image and text meet in `hidden` channels.

    >>> import torch
    >>> from ris_pipeline import build_step1
    >>> network = build_step1("shapes", hidden=256)
    >>> network(torch.zeros(1, 3, 160, 160), network.clip.tokenize(["the red circle", "the star"])).shape
    torch.Size([1, 2, 10, 10])

    The paper's is `build_step1("RN50-quickgelu", hidden=1024, clip_weights="openai")`.
    `clip`, `clip_weights`: as for `load_clip`. `image_encoder`: a network of timm in place of CLIP's own, with
    `image_encoder_weights`; both as for `load_timm_network`. Without weights, values are random. `n_tokens`: of a
    sentence that the CLIP reads. `weights`: a file with all weights of a trained network, ours or one that TRIS
    released; then no others are read.
    Raises RisError for names that are not known, and for files that cannot be read or do not fit.
    """
    encoders = _build_encoders(clip, clip_weights, image_encoder, image_encoder_weights, n_tokens, weights)
    return _fill(Step1(*encoders, hidden=hidden), weights)


def build_step2(
    clip: str,
    *,
    widths: Widths,
    clip_weights: str | None = None,
    image_encoder: str | None = None,
    image_encoder_weights: str | None = None,
    n_tokens: int = N_TOKENS,
    weights: Path | None = None,
) -> Step2:
    """Return Step-2 on the CLIP called `clip`; its decoder has `widths` channels at strides 4, 8, 16 and 32.

    >>> import torch
    >>> from ris_pipeline import build_step2
    >>> network = build_step2("shapes", widths=(16, 32, 64, 128)).eval()
    >>> network(torch.zeros(1, 3, 160, 160), network.clip.tokenize(["the red circle"])).shape
    torch.Size([1, 160, 160])

    The paper's is `build_step2("RN50-quickgelu", widths=(64, 128, 256, 512), clip_weights="openai")`. The other
    arguments and the errors are those of `build_step1`.
    """
    encoders = _build_encoders(clip, clip_weights, image_encoder, image_encoder_weights, n_tokens, weights)
    return _fill(Step2(*encoders, widths=widths), weights)


def step1_from_config(config: Step1Config, weights: Path | None = None) -> Step1:
    """Return Step-1 of a configuration, with the encoders' weights that it names or all `weights` of a file."""
    network = build_step1(
        config.clip, hidden=config.hidden, clip_weights=config.clip_weights, image_encoder=config.image_encoder,
        image_encoder_weights=config.image_encoder_weights, n_tokens=config.n_tokens, weights=weights,
    )  # fmt: skip
    if weights is None and config.project_from_clip:
        network.project_from_clip()
    network.freeze_levels(config.frozen_levels)
    return network


def step2_from_config(config: Step2Config, weights: Path | None = None, *, step1: Path | None = None) -> Step2:
    """Return Step-2 of a configuration, as `step1_from_config`.

    `step1`: weights of Step-1 whose encoders it starts with. Raises RisError where they are other encoders.
    """
    network = build_step2(
        config.clip, widths=config.widths, clip_weights=config.clip_weights, image_encoder=config.image_encoder,
        image_encoder_weights=config.image_encoder_weights, n_tokens=config.n_tokens, weights=weights,
    )  # fmt: skip
    if step1 is not None:
        tensors = read_weights(step1).tensors
        for name in ("clip", "image_encoder"):
            encoder = getattr(network, name)
            if encoder is not None:
                own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
                copy_tensors(encoder, own, step1)
    network.freeze_levels(config.frozen_levels)
    return network


def aux_from_config(config: Step1Config) -> Clip:
    """Return the frozen CLIP of the calibration loss and of PRMS, in evaluation mode."""
    return freeze(load_clip(config.aux_clip, config.aux_weights, config.n_tokens))


def freeze(network: N, device: torch.device | None = None) -> N:
    """Return the network, on a device where one is given, in evaluation mode and not to be trained."""
    # Convolutions on a CPU are up to twice as fast with channels last.
    return network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _build_encoders(
    clip: str,
    clip_weights: str | None,
    image_encoder: str | None,
    image_encoder_weights: str | None,
    n_tokens: int,
    weights: Path | None,
) -> tuple[Clip, ImageEncoder]:
    """Return the CLIP and the image encoder, which may be the same; random where the file `weights` has them."""
    if weights is not None:
        clip_weights = image_encoder_weights = None
    built = load_clip(clip, clip_weights, n_tokens)
    if image_encoder is None:
        return built, built
    return built, load_timm_encoder(image_encoder, image_encoder_weights)


def _fill(network: R, file: Path | None) -> R:
    """Return the network with all weights of a file, ours or one that TRIS released; as it is for None."""
    if file is not None:
        tensors = read_weights(file).tensors
        if not any(name.startswith("clip.model.") for name in tensors):
            tensors = read_released(file, "tris-step1" if isinstance(network, Step1) else "tris-step2").tensors
        copy_tensors(network, tensors, file)
    return network


def load_stages(name: str, weights: str | None) -> StageBackbone:
    """Return the ResNet called `name`, a CLIP's or timm's, in five stages; `weights` as for either, None: random."""
    if name in TIMM_NAMES:
        return ResNetStages(load_timm_network(name, weights))
    return ClipStages(load_clip(name, weights))


def irnet_from_config(config: PseudolabelConfig) -> IRNet:
    """Return IRNet on the configuration's backbone, a CLIP-ResNet or a timm ResNet; heads fresh, or all of it given."""
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
    net = irnet_from_config(replace(config, irn_weights=None))
    if config.irnet is None:
        net.load_state_dict(load_file(labels.path / IRNET_WEIGHTS))
    return net.to(device).eval()
