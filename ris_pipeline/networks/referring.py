"""What Step-1 and Step-2 have in common: the two encoders, frozen levels, optimiser groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol, Self

from torch import Tensor, nn

from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.levels import Levels

_STAGE_NAME = re.compile(r"layers?_?\d")  # layer1 in a ResNet, layers_0 in timm's flattened Swin
_STAGES_NAME = re.compile(r"layers|stages")  # what holds the stages in a Swin or a ConvNeXt as timm builds it


class ImageEncoder(Protocol):
    """What Step-1 and Step-2 ask of an image encoder."""

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        """Channels of c1..c4."""

    def levels(self, pixels: Tensor) -> Levels:
        """Return c1..c4 of `pixels` float (B, 3, H, W): float (B, C_i, H/s, W/s), s = 4, 8, 16, 32."""

    def grid_side(self, side: int) -> int:
        """Return the cells along a side of c4 for images of `side` pixels."""


class ReferringNetwork(nn.Module):
    """A network that reads sentences by `clip` and images by `image_encoder`, which may be the same `clip`.

    The state dict has `clip.*`, and `image_encoder.*` only where that is another network.
    """

    def __init__(self, clip: Clip, image_encoder: ImageEncoder) -> None:
        super().__init__()
        self.clip = clip
        # Registered twice, one encoder would have two names in the state dict.
        self.image_encoder = None if image_encoder is clip else image_encoder
        self._frozen: list[nn.Module] = []

    def levels(self, pixels: Tensor) -> Levels:
        """Return c1..c4, float (B, C_i, H/s, W/s) s = 4, 8, 16, 32, of `pixels` float (B, 3, H, W)."""
        encoder = self.clip if self.image_encoder is None else self.image_encoder
        return encoder.levels(pixels)

    def grid_side(self, side: int) -> int:
        """Return the cells along a side of c4 for images of `side` pixels."""
        return (self.clip if self.image_encoder is None else self.image_encoder).grid_side(side)

    def freeze_levels(self, n: int) -> None:
        """Fix the first `n` parts of the image encoder: the stem, then the stages that give c1, c2 and so on.

        A fixed part gets no gradient, and its BatchNorm keeps the statistics that it has. Call it before
        `parameter_groups`. Raises RisError for an encoder without such stages, unless `n` is 0.
        """
        if n == 0:
            return
        encoder = self.get_submodule("clip.model.visual" if self.image_encoder is None else "image_encoder")
        for part, module in _parts(encoder):
            if part < n:
                module.requires_grad_(False)
                self._frozen.append(module)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Return self in training (or evaluation) mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def parameter_groups(self, lr: float, backbone_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the two groups of the optimiser: both encoders at `backbone_lr`, all that is new at `lr`.

        The paper: AdamW, lr 5e-5, backbone 5e-6, weight decay 0.01. Frozen parameters are in neither.
        """
        # Differs from TRIS: in Step-2 the released code has CLIP's positional embeddings at the full rate.
        backbone: list[nn.Parameter] = []
        new: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (backbone if name.startswith(("clip.", "image_encoder.")) else new).append(parameter)
        return [
            {"params": backbone, "lr": backbone_lr, "weight_decay": weight_decay},
            {"params": new, "lr": lr, "weight_decay": weight_decay},
        ]


def _parts(encoder: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """Yield each child of the trunk with its part: 0 for the stem's, then 1, 2, … for the stages in order."""
    for trunk in encoder.modules():
        children = list(_open_stages(trunk))
        if any(is_stage for is_stage, _ in children):
            part = 0
            for is_stage, child in children:
                part += is_stage
                yield part, child
            return
    raise RisError(f"{type(encoder).__name__} has no stages to freeze: set the number of frozen levels to 0")


def _open_stages(trunk: nn.Module) -> Iterator[tuple[bool, nn.Module]]:
    """Yield each child of the trunk, and whether it is a stage; the stages themselves where one child holds them."""
    for name, child in trunk.named_children():
        if _STAGES_NAME.fullmatch(name) and isinstance(child, nn.Sequential | nn.ModuleList):
            yield from ((True, stage) for stage in child)
        else:
            yield bool(_STAGE_NAME.fullmatch(name)), child
