"""The device to compute on, and automatic mixed precision."""

from __future__ import annotations

import torch

from ris_pipeline.errors import RisError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which torch computes in `precision` what allows it: "bf16", "fp16", or "fp32" for nothing."""
    return torch.autocast(device.type, _TYPES.get(precision), enabled=precision in _TYPES)


def find_device(name: str) -> torch.device:
    """Return the device of that name; "auto": CUDA where there is any, else MPS, else the CPU.

    Raises RisError where it is not usable here.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RisError(f"--device {name}: not usable here; try --device cpu") from error
    return device
