"""Automatic mixed precision."""

from __future__ import annotations

import torch

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which torch computes in `precision` what allows it: "bf16", "fp16", or "fp32" for nothing."""
    return torch.autocast(device.type, _TYPES.get(precision), enabled=precision in _TYPES)
