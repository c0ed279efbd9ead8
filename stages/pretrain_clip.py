"""`ris pretrain-clip`: generated pictures and captions → the small CLIP, as a folder that `clip =` can name."""

import json
from dataclasses import asdict

from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.config import ClipConfig
from stages.common import device_of, due, resolve_config, show
from stages.options import StageOptions
from stages.progress import progress, report_steps


def run(options: StageOptions) -> None:
    """Train the small CLIP, unless that is done. It reads no data set: its pictures are made as it goes."""
    config = resolve_config(options, ClipConfig, "clip")
    request = Request(
        options.runs, "shapes", "clip", asdict(config), {}, seed=options.seed, precision=options.precision
    )
    if due(options, request):
        _train(options, request, config)
    show(options, request)


def _train(options: StageOptions, request: Request, config: ClipConfig) -> None:
    import torch

    from ris_pipeline.networks.weights.clip_weights import CONFIG_NAME, WEIGHTS_NAME, save_compact
    from ris_pipeline.process.ranks import ALONE
    from ris_pipeline.shapes.captions import vocabulary
    from ris_pipeline.training.contrastive import (
        LAST_STRIDE,
        MODEL_CONFIG,
        ContrastiveTask,
        PairBatches,
        build_small_clip,
        curriculum,
    )
    from ris_pipeline.training.loop import train

    device = device_of(options)
    phases = curriculum(config)
    torch.manual_seed(options.seed)
    with publish(request, force=options.force) as work:
        clip = build_small_clip()
        source = PairBatches(phases, options.seed)
        with progress(options, "clip", source.n_steps) as advance:
            train(
                ContrastiveTask(clip, phases), source, work.path, device=device, precision=options.precision,
                workers=options.workers, ranks=ALONE, seed=options.seed, report=report_steps(advance),
            )  # fmt: skip
        card = {"model_cfg": MODEL_CONFIG, "last_stride": LAST_STRIDE}
        (work.path / CONFIG_NAME).write_text(json.dumps(card, indent=2) + "\n")
        rows = {int(token) for token in clip.tokenize(vocabulary()).flatten()}
        save_compact(clip, work.path / WEIGHTS_NAME, rows, half=True)
        work.host |= {"device": str(device)}
