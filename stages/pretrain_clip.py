"""`ris pretrain-clip`: generated pictures and captions → the small CLIP, as a folder that `clip =` can name."""

from __future__ import annotations

from stages.console import show
from stages.context import Compute, Making, Output, Places, open_context


def run(places: Places, compute: Compute, making: Making, output: Output) -> None:
    """Train the small CLIP of the embedded data set.

    Reads:    nothing: its pictures and captions are generated
    Writes:   runs/shapes/clip/: open_clip_config.json, model.safetensors
    Example:  ris pretrain-clip --device cuda
    """
    from ris_pipeline.chain.clip import pretrain_clip

    show(output, pretrain_clip(open_context(places, compute, making, output)))
