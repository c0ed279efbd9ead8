"""A trained network, or a compared method → the score grid of every sentence, and PRMS's choice for each ref."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import store_path
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.chain.publish import publish_together
from ris_pipeline.config import ResponsesConfig, Step1Config, config_from_manifest
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import EmptySplitError, MadeMeanwhileError
from ris_pipeline.methods import TRIS, find_method, method_of
from ris_pipeline.process.ranks import agree, in_turn, joined, share

if TYPE_CHECKING:
    from ris_pipeline.maps.respond import Responder


@joined()
def dump_responses(
    data: Context | Card | Path | str,
    config: ResponsesConfig | Mapping[str, Any] | None = None,
    *,
    splits: Sequence[str] | None = None,
    method: str = TRIS,
    **places: Unpack[Places],
) -> dict[str, Artifact]:
    """Dump the responses to the sentences of each split, unless that is done, and return its artifact.

    `splits`: all of the card if None. `method`: the name of a compared method, in place of TRIS's Step-1. `data`,
    `config`, `places` and errors as in `train_step1`. A split of which the data hold nothing is left out, or, if it was
    named, an EmptySplitError.
    """
    context = open_context(data, **places)
    resolved = context.resolve(ResponsesConfig, "responses", config)
    answering = find_method(method)
    trained = context.find_input("step1", **answering.flags) if answering.trained else None

    def load() -> Responder:
        from ris_pipeline.methods.load import load_network

        if trained is not None:
            return load_network(trained, context.device)
        settings = context.resolve(answering.config, answering.table, beside=True)
        return answering.load(settings, context.device)

    made = {}
    for split in context.find_splits(splits):
        try:
            request = context.request(
                "responses", resolved, settings=config, inputs=[trained] if trained else [],
                flags={"split": split}, method=answering,
            )  # fmt: skip
            if context.is_due(request):
                _dump(context, request, resolved, split, load, trained)
        except EmptySplitError as error:
            if splits:
                raise
            context.say(f"left out: {error}")
            continue
        if (artifact := find(request)) is not None:
            made[split] = artifact
    return made


def find_judge(context: Context, trained: Artifact | None) -> Step1Config:
    """Return the Step-1 whose frozen CLIP judges for PRMS: the trained one, or, for a compared method, the card's."""
    if trained is not None and method_of(trained).is_tris:
        return config_from_manifest(Step1Config, trained.manifest)
    return context.resolve(Step1Config, "step1", beside=True)


def _dump(
    context: Context,
    request: Request,
    config: ResponsesConfig,
    split: str,
    load: Callable[[], Responder],
    trained: Artifact | None,
) -> None:
    from ris_pipeline.maps.respond import fill_responses, open_store
    from ris_pipeline.maps.store import ResponseStore
    from ris_pipeline.networks.load import aux_from_config
    from ris_pipeline.predict import describe_unread

    dataset = context.open_dataset(split, with_images=True)
    sentences = {e.sentence for ref in dataset.refs for e in ref.expressions}
    with suppress(MadeMeanwhileError), publish_together(context, request) as work:
        responder = in_turn(load)
        judge = find_judge(context, trained)
        aux = in_turn(lambda: aux_from_config(judge).to(context.device)) if config.prms else None
        for line in describe_unread(responder, sorted(sentences)):
            context.say(f"{dataset.name} {split}: {line}")
        label = f"responses {split}"
        inputs = {name: value for name, value in request.inputs.items() if name not in ("data", "images")}
        path = store_path(work.path, split)
        missing = agree(lambda: open_store(path, dataset, responder, inputs).missing_blocks(scored=aux is not None))
        store = ResponseStore.open(path, writable=True)
        left = sum(len(store.rows_of_block(block)) for block in missing)
        if left < len(store):
            context.say(f"{label}: {len(store) - left} of {len(store)} sentences are there already")
        with context.progress(label, len(store), len(store) - left) as advance:
            fill_responses(responder, aux, dataset, store, share(missing), config, advance)
        work.counts |= {
            "refs": len(dataset.refs),
            "sentences": dataset.n_expressions,
            "images": len(dataset.images),
            "cut_sentences": len(responder.find_cut(sorted(sentences))),
        }
        work.host |= {"device": str(context.device)}
