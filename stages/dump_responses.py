"""`ris dump-responses`: Step-1's score grid of every sentence, and the one that PRMS selects for each ref."""

from ris_pipeline.artifacts import Artifact, Request, publish
from ris_pipeline.config import ResponsesConfig, Step1Config
from stages.common import (
    StageOptions,
    device_of,
    due,
    input_of,
    open_dataset,
    progress,
    request_of,
    resolve_config,
    say,
    show,
    splits_of,
)


def run(options: StageOptions, splits: list[str] | None, prms: bool | None = None) -> None:
    """Dump the responses of the splits, all of the card if none is named."""
    chosen = {} if prms is None else {"prms": prms}
    config = resolve_config(options, ResponsesConfig, "responses", **chosen)
    step1 = input_of(options, "step1")
    for split in splits_of(options, splits):
        request = request_of(options, "responses", config, inputs=[step1], flags={"split": split})
        if due(options, request):
            _dump(options, request, config, step1, split)
        show(options, request)


def _dump(options: StageOptions, request: Request, config: ResponsesConfig, step1: Artifact, split: str) -> None:
    from ris_pipeline.inference import fill_responses, open_store
    from ris_pipeline.networks.build import build_aux, build_step1, config_from_manifest
    from ris_pipeline.training.loop import WEIGHTS

    dataset = open_dataset(options, split)
    step1_config = config_from_manifest(Step1Config, step1.manifest)
    device = device_of(options)
    network = build_step1(step1_config, step1.path / WEIGHTS).to(device)
    aux = build_aux(step1_config).to(device) if config.prms else None
    with publish(request, force=options.force) as work:
        store = open_store(work.path / f"{split}.zarr", dataset, network, step1_config.input_size, step1.digest)
        left = sum(len(store.rows_of_block(block)) for block in store.missing_blocks())
        if left < len(store):
            say(options, f"responses {split}: {len(store) - left} of {len(store)} sentences are there already")
        with progress(options, f"responses {split}", len(store), len(store) - left) as advance:
            fill_responses(network, aux, dataset, store, config, device, advance)
        work.counts |= {
            "refs": len(dataset.refs),
            "sentences": dataset.n_expressions,
            "images": len(dataset.images),
        }
        work.host |= {"device": str(device)}
