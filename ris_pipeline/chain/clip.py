"""Generated pictures and captions → the small CLIP, as a folder that `clip =` can name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from ris_pipeline.artifacts.files import write_json
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import CLIP_CONFIG, WEIGHTS
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.chain.publish import publish_together
from ris_pipeline.config import ClipConfig
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import MadeMeanwhileError
from ris_pipeline.process.console import report_steps
from ris_pipeline.process.ranks import agree, connected, is_first, joined


@joined()
def pretrain_clip(
    data: Context | Card | Path | str = "shapes",
    config: ClipConfig | Mapping[str, Any] | None = None,
    **places: Unpack[Places],
) -> Artifact | None:
    """Train the small CLIP, unless that is done, and return its artifact. It reads no data set.

    Arguments as in `train_step1`.
    """
    context = open_context(data, **places)
    resolved = context.resolve(ClipConfig, "clip", config)
    request = Request(
        context.runs, "shapes", "clip", asdict(resolved), {}, seed=context.seed, precision=context.precision
    )
    if context.is_due(request):
        _train(context, request, resolved)
    return agree(lambda: find(request))


def _train(context: Context, request: Request, config: ClipConfig) -> None:
    import torch

    from ris_pipeline.networks.weights.clip_weights import save_compact
    from ris_pipeline.shapes.captions import vocabulary
    from ris_pipeline.training.contrastive import (
        LAST_STRIDE,
        MODEL_CONFIG,
        PREPROCESSING,
        ContrastiveTask,
        PairBatches,
        build_small_clip,
        curriculum,
    )
    from ris_pipeline.training.loop import train

    phases = curriculum(config)
    torch.manual_seed(context.seed)
    with (
        connected(context.device) as ranks,
        suppress(MadeMeanwhileError),
        publish_together(context, request, apart=True) as work,
    ):
        clip = build_small_clip()
        source = PairBatches(phases, context.seed, ranks)
        with context.console.progress("clip", source.n_steps) as advance:
            train(
                ContrastiveTask(clip, phases), source, work.path, device=context.device, precision=context.precision,
                workers=context.workers, ranks=ranks, seed=context.seed, report=report_steps(advance),
            )  # fmt: skip
        work.host |= {"device": str(context.device), "ranks": ranks.n_ranks}
        if not is_first():
            return
        described = {"model_cfg": MODEL_CONFIG, "last_stride": LAST_STRIDE, "preprocess_cfg": PREPROCESSING}
        write_json(work.path / CLIP_CONFIG, described)
        rows = {int(token) for token in clip.tokenize(vocabulary()).flatten()}
        save_compact(clip, work.path / WEIGHTS, rows, half=True)
