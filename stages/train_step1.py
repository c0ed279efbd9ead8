"""`ris train-step1`: images and sentences → a response network."""

from __future__ import annotations

from ris_pipeline.methods import TRIS
from ris_pipeline.process.workers import WORKERS
from stages.console import show
from stages.context import (
    Cache,
    Compile,
    Device,
    Init,
    Limit,
    Making,
    MethodName,
    Output,
    Places,
    Precision,
    Seed,
    Workers,
    open_context,
)


def run(
    places: Places,
    making: Making,
    output: Output,
    method: MethodName = TRIS,
    init: Init = None,
    limit: Limit = None,
    cache: Cache = False,
    compile: Compile = False,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = WORKERS,
) -> None:
    """Step-1: learn response maps from images and sentences.

    Reads:    images and sentences of the split train
    Writes:   runs/<dataset>/step1/: model.safetensors, metrics.jsonl
    Example:  ris train-step1 --dataset refcoco --set epochs=10
    """
    from ris_pipeline.chain.train import train_step1

    context = open_context(
        places, making, output, seed=seed, device=device, precision=precision, workers=workers, compiled=compile
    )
    show(output, train_step1(context, method=method, init=init, limit=limit, cache=cache))
