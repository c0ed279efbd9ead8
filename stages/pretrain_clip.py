"""`ris pretrain-clip`: generated pictures and captions → the small CLIP, as a folder that `clip =` can name."""

from __future__ import annotations

from ris_pipeline.process.workers import WORKERS
from stages.console import show
from stages.context import Device, Making, Output, Places, Precision, Seed, Workers, open_context


def run(
    places: Places,
    making: Making,
    output: Output,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = WORKERS,
) -> None:
    """Train the small CLIP of the embedded data set.

    Reads:    nothing: its pictures and captions are generated
    Writes:   runs/shapes/clip/: open_clip_config.json, model.safetensors
    Example:  ris pretrain-clip --device cuda
    """
    from ris_pipeline.chain.clip import pretrain_clip

    context = open_context(places, making, output, seed=seed, device=device, precision=precision, workers=workers)
    show(output, pretrain_clip(context))
