"""`ris dump-responses`: Step-1's score grid of every sentence, and the one that PRMS selects for each ref."""

from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import store_path
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.config import ResponsesConfig, Step1Config
from ris_pipeline.errors import EmptySplitError
from stages.common import device_of, due, input_of, open_dataset, request_of, resolve_config, show, splits_of
from stages.options import StageOptions, say
from stages.progress import progress


def run(options: StageOptions, splits: list[str] | None, prms: bool | None = None) -> None:
    """Dump the responses of the splits, all of the card if none is named."""
    chosen = {} if prms is None else {"prms": prms}
    config = resolve_config(options, ResponsesConfig, "responses", **chosen)
    step1 = input_of(options, "step1")
    for split in splits_of(options, splits):
        try:
            request = request_of(options, "responses", config, inputs=[step1], flags={"split": split})
            if due(options, request):
                _dump(options, request, config, step1, split)
        except EmptySplitError as error:
            if splits:
                raise
            say(options, f"left out: {error}")
            continue
        show(options, request)


def _dump(options: StageOptions, request: Request, config: ResponsesConfig, step1: Artifact, split: str) -> None:
    from ris_pipeline.maps.respond import fill_responses, open_store
    from ris_pipeline.methods.tris import load_network
    from ris_pipeline.networks.load import build_aux, config_from_manifest
    from ris_pipeline.predict import describe_cut

    dataset = open_dataset(options, split, with_images=True)
    device = device_of(options)
    responder = load_network(step1, device)
    aux = build_aux(config_from_manifest(Step1Config, step1.manifest)).to(device) if config.prms else None
    sentences = {e.sentence for ref in dataset.refs for e in ref.expressions}
    if cut := responder.find_cut(sorted(sentences)):
        say(options, f"{dataset.name} {split}: {describe_cut(cut, responder.n_tokens)}")
    with publish(request, force=options.force) as work:
        label = f"responses {split}"
        store = open_store(store_path(work.path, split), dataset, responder, {"step1": step1.digest})
        missing = store.missing_blocks(scored=aux is not None)
        left = sum(len(store.rows_of_block(block)) for block in missing)
        if left < len(store):
            say(options, f"{label}: {len(store) - left} of {len(store)} sentences are there already")
        with progress(options, label, len(store), len(store) - left) as advance:
            fill_responses(responder, aux, dataset, store, missing, config, advance)
        work.counts |= {
            "refs": len(dataset.refs),
            "sentences": dataset.n_expressions,
            "images": len(dataset.images),
            "cut_sentences": len(cut),
        }
        work.host |= {"device": str(device)}
