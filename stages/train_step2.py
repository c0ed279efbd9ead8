"""`ris train-step2`: images, sentences and pseudo-labels → a segmentation network."""

from __future__ import annotations

from typing import Annotated

import typer

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
    Round,
    Seed,
    Workers,
    open_context,
)


def run(
    places: Places,
    making: Making,
    output: Output,
    oracle: Annotated[bool, typer.Option("--oracle", help="Learn from the true masks: an upper bound.")] = False,
    proposals: Annotated[
        bool,
        typer.Option("--proposals", help="Learn from labels chosen among class-agnostic masks: other supervision."),
    ] = False,
    method: MethodName = TRIS,
    round: Round = 1,
    init: Init = None,
    limit: Limit = None,
    cache: Cache = False,
    compile: Compile = False,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = WORKERS,
) -> None:
    """Step-2: learn to segment from the pseudo-labels.

    Reads:    refined pseudolabels; images and sentences of the split train
    Writes:   runs/<dataset>/step2/: model.safetensors, metrics.jsonl
    Example:  ris train-step2 --dataset refcoco --precision bf16
    """
    from ris_pipeline.chain.train import train_step2

    context = open_context(
        places, making, output, seed=seed, device=device, precision=precision, workers=workers, compiled=compile
    )
    done = train_step2(
        context, oracle=oracle, proposals=proposals, method=method, round=round, init=init, limit=limit, cache=cache
    )
    show(output, done)
