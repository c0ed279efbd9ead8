"""How a score grid becomes the map of an image, and the map a mask: a rule, kept as data and executed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.errors import RisError

Activation = Literal["relu", "sigmoid", "clamp", "none", "logit"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "clamp": lambda maps: maps.clamp(0, 1),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """From a grid (h, w) to a map (H, W) and a mask, in this order.

    `via_input`: resize to input_size first, bilinear, half-pixel centres. `activation`: of each value; "logit" leaves
    it, and the map is shown as its sigmoid. `to_image`: the bilinear resize to the image, by its corners or by pixel
    centres (torch's align_corners). `normalise`: "max" divides by (maximum + 1e-5), "minmax" takes the minimum off
    and divides by (range + 1e-5). `threshold`: the mask is map > threshold.
    """

    via_input: bool
    activation: Activation
    to_image: Literal["corners", "centres"]
    normalise: Literal["max", "minmax", "none"]
    threshold: float


_KINDS = get_type_hints(Rule)  # once: it compiles the annotations, and reading a file compiles nothing

# Step-1's released evaluation. The corner convention changes half-way, and its scores depend on that.
RESPONSE = Rule(via_input=True, activation="relu", to_image="corners", normalise="max", threshold=1e-9)
# Step-2's. Differs from TRIS: no division by the maximum, which is negative where nothing is found and flips the mask.
SEGMENTATION = Rule(via_input=False, activation="logit", to_image="corners", normalise="none", threshold=0.0)


def compute_map(grids: Tensor, rule: Rule, input_size: int, image_hw: tuple[int, int]) -> Tensor:
    """Return the maps float32 (n, H, W) of one image from its score grids float (n, h, w).

    Without a positive score, RESPONSE gives a map of zeros.

    >>> import torch
    >>> from ris_pipeline.maps.rule import RESPONSE, compute_map, compute_mask
    >>> maps = compute_map(torch.tensor([[[-1.0, 2.0], [-1.0, 2.0]]]), RESPONSE, input_size=4, image_hw=(2, 4))
    >>> compute_mask(maps, RESPONSE)[0, 0].tolist()
    [False, False, True, True]
    """
    maps = grids.float().unsqueeze(1)  # (n, 1, h, w)
    if rule.via_input:
        maps = F.interpolate(maps, size=(input_size, input_size), mode="bilinear", align_corners=False)
    if rule.activation in _ACTIVATIONS:
        maps = _ACTIVATIONS[rule.activation](maps)
    corners = rule.to_image == "corners"
    maps = F.interpolate(maps, size=image_hw, mode="bilinear", align_corners=corners).squeeze(1)
    if rule.normalise == "minmax":
        maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    if rule.normalise != "none":
        maps = maps / (maps.amax(dim=(1, 2), keepdim=True) + 1e-5)
    return maps


def compute_mask(maps: Tensor, rule: Rule) -> Tensor:
    """Return the masks bool (n, H, W) of maps float (n, H, W)."""
    return maps > rule.threshold


def show_map(maps: Tensor, rule: Rule) -> Tensor:
    """Return maps (n, H, W) as they are shown, in [0, 1]: logits by their sigmoid."""
    return maps.sigmoid() if rule.activation == "logit" else maps


def parse_rule(values: Any, where: str) -> Rule:
    """Return the rule of JSON values. Raises RisError, beginning with `where`, for anything that is none."""
    names = {field.name for field in fields(Rule)}
    if not isinstance(values, dict) or values.keys() != names:
        raise RisError(f"{where}: rule: must have {', '.join(sorted(names))}")
    for name, value in values.items():
        choices = get_args(_KINDS[name])
        right = value in choices if choices else type(value) is _KINDS[name] and value == value
        if not right:
            expected = " or ".join(map(repr, choices)) or _KINDS[name].__name__
            raise RisError(f"{where}: rule: {name} = {value!r:.80}; expected {expected}")
    return Rule(**values)
