"""The device to compute on, and automatic mixed precision."""

from __future__ import annotations

import torch

from ris_pipeline.errors import RisError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which torch computes in "bf16" or "fp16" what allows it; nothing for other precisions."""
    return torch.autocast(device.type, _TYPES.get(precision), enabled=precision in _TYPES)


def choose_precision(device: torch.device) -> str:
    """Return what the precision "auto" stands for: "bf16" where the device has products of it, else "fp32"."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        cpu = torch.cpu
        has_bf16 = device.type == "cpu" and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return "bf16" if has_bf16 else "fp32"


def allow_tf32() -> None:
    """Let matrix products on CUDA round their float32 factors to ten bits, as torch lets cuDNN's convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = True


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
