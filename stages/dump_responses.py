"""`ris dump-responses`: Step-1's score grid of every sentence, and the one that PRMS selects for each ref."""

from typing import TYPE_CHECKING, NamedTuple

from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import store_path
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import ResponsesConfig, Step1Config
from ris_pipeline.errors import EmptySplitError
from stages.common import device_of, due, input_of, open_dataset, request_of, resolve_config, show, splits_of
from stages.options import StageOptions, say
from stages.progress import progress

if TYPE_CHECKING:
    import torch

    from ris_pipeline.datasets import Dataset
    from ris_pipeline.networks.clip import Clip
    from ris_pipeline.networks.step1 import Step1


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
    from ris_pipeline.predict import describe_cut

    dataset = open_dataset(options, split, with_images=True)
    networks = load_networks(options, config, step1)
    sentences = {e.sentence for ref in dataset.refs for e in ref.expressions}
    if cut := networks.step1.clip.find_cut(sorted(sentences)):
        say(options, f"{dataset.name} {split}: {describe_cut(cut, networks.step1.clip.n_tokens)}")
    with publish(request, force=options.force) as work:
        fill(options, work, dataset, networks, config)
        work.counts |= {
            "refs": len(dataset.refs),
            "sentences": dataset.n_expressions,
            "images": len(dataset.images),
            "cut_sentences": len(cut),
        }
        work.host |= {"device": str(networks.device)}


class Networks(NamedTuple):
    """What a dump needs of Step-1."""

    step1: "Step1"
    aux: "Clip | None"  # for PRMS
    input_size: int
    digest: str  # of the artifact
    device: "torch.device"


def load_networks(options: StageOptions, config: ResponsesConfig, step1: Artifact) -> Networks:
    """The networks of a Step-1, ready to respond."""
    from ris_pipeline.artifacts.layout import WEIGHTS
    from ris_pipeline.networks.load import build_aux, build_step1, config_from_manifest

    step1_config = config_from_manifest(Step1Config, step1.manifest)
    device = device_of(options)
    network = build_step1(step1_config, step1.path / WEIGHTS).to(device)
    aux = build_aux(step1_config).to(device) if config.prms else None
    return Networks(network, aux, step1_config.input_size, step1.digest, device)


def fill(options: StageOptions, work: Work, dataset: "Dataset", networks: Networks, config: ResponsesConfig) -> None:
    """Write the blocks that are missing in the work folder, and the selection."""
    from ris_pipeline.maps.respond import fill_responses, open_store

    label = f"responses {dataset.split}"
    path = store_path(work.path, dataset.split)
    store = open_store(path, dataset, networks.step1, networks.input_size, networks.digest)
    missing = store.missing_blocks(scored=networks.aux is not None)
    left = sum(len(store.rows_of_block(block)) for block in missing)
    if left < len(store):
        say(options, f"{label}: {len(store) - left} of {len(store)} sentences are there already")
    with progress(options, label, len(store), len(store) - left) as advance:
        fill_responses(networks.step1, networks.aux, dataset, store, config, networks.device, advance)
