"""`ris pretrain-clip`: generated pictures and captions → the small CLIP, as a folder that `clip =` can name."""

import json
from dataclasses import asdict

from ris_pipeline.artifacts import Request, publish
from ris_pipeline.config import ClipConfig
from stages.common import StageOptions, device_of, due, log_metrics, progress, resolve_config, show


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
    from safetensors.torch import load_file, save_file

    from ris_pipeline.datasets.captions import vocabulary
    from ris_pipeline.networks.clip_weights import CONFIG_NAME, WEIGHTS_NAME, save_compact
    from ris_pipeline.training.contrastive import (
        LAST_STRIDE,
        MODEL_CONFIG,
        build_small_clip,
        curriculum,
        train_phase,
    )

    device = device_of(options)
    torch.manual_seed(options.seed)
    with publish(request, force=options.force) as work:
        clip = build_small_clip().to(device).to(memory_format=torch.channels_last)
        for phase in curriculum(config):
            done = work.path / f"{phase.name}.safetensors"
            if done.exists():
                clip.load_state_dict(load_file(done))
                continue
            with work.timed(phase.name), progress(options, phase.name, phase.n_steps) as advance:

                def report(step: int, loss: float, accuracy: float) -> None:
                    log_metrics(work.path, step=step, loss=loss, accuracy=accuracy)
                    advance(1, loss=loss, accuracy=accuracy)

                train_phase(clip, phase, options.seed, options.precision, report)
            weights = {name: value.cpu().contiguous() for name, value in clip.state_dict().items()}
            save_file(weights, done.with_suffix(".new"))
            done.with_suffix(".new").rename(done)
        card = {"model_cfg": MODEL_CONFIG, "last_stride": LAST_STRIDE}
        (work.path / CONFIG_NAME).write_text(json.dumps(card, indent=2) + "\n")
        rows = {int(token) for token in clip.tokenize(vocabulary()).flatten()}
        save_compact(clip, work.path / WEIGHTS_NAME, rows, half=True)
        for phase in curriculum(config):
            (work.path / f"{phase.name}.safetensors").unlink()
        work.host |= {"device": str(device)}
