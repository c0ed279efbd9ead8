"""A trained network, or a compared method → the score grid of every sentence, and PRMS's choice for each ref."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import METHOD, store_path
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.config import ResponsesConfig, Step1Config
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import EmptySplitError
from ris_pipeline.methods import find_method

if TYPE_CHECKING:
    from ris_pipeline.maps.respond import Responder
    from ris_pipeline.networks.clip import Clip


class _Source(NamedTuple):
    """What answers: how it enters the identity of its responses, and how it is loaded, with the CLIP of PRMS."""

    inputs: tuple[Artifact, ...]
    others: dict[str, str]
    flags: dict[str, str | bool]
    extra: dict[str, Any]
    load: Callable[[], tuple[Responder, Clip | None]]


def dump_responses(
    data: Context | Card | Path | str,
    config: ResponsesConfig | Mapping[str, Any] | None = None,
    *,
    splits: Sequence[str] | None = None,
    method: str | None = None,
    **places: Unpack[Places],
) -> dict[str, Artifact]:
    """Dump the responses to the sentences of each split, unless that is done, and return its artifact.

    `splits`: all of the card if None. `method`: the name of a compared method, in place of Step-1. `data`, `config`,
    `places` and errors as in `train_step1`. A split of which the data hold nothing is left out, or, if it was named,
    an EmptySplitError.
    """
    context = open_context(data, **places)
    resolved = context.resolve(ResponsesConfig, "responses", config)
    source = _find_step1(context, resolved) if method is None else _find_method(context, method)
    made = {}
    for split in context.find_splits(splits):
        try:
            request = context.request(
                "responses", resolved, settings=config, inputs=source.inputs, others=source.others,
                flags={**source.flags, "split": split}, extra=source.extra,
            )  # fmt: skip
            if context.is_due(request):
                _dump(context, request, resolved, source, split)
        except EmptySplitError as error:
            if splits:
                raise
            context.say(f"left out: {error}")
            continue
        if (artifact := find(request)) is not None:
            made[split] = artifact
    return made


def _find_step1(context: Context, config: ResponsesConfig) -> _Source:
    step1 = context.find_input("step1")

    def load() -> tuple[Responder, Clip | None]:
        from ris_pipeline.methods.tris import load_network
        from ris_pipeline.networks.load import build_aux, config_from_manifest

        step1_config = config_from_manifest(Step1Config, step1.manifest)
        aux = build_aux(step1_config).to(context.device) if config.prms else None
        return load_network(step1, context.device), aux

    return _Source((step1,), {}, {}, {}, load)


def _find_method(context: Context, name: str) -> _Source:
    method = find_method(name)
    config = context.resolve(method.config, name)
    others, flags = {METHOD: method.version}, {METHOD: name}
    return _Source((), others, {**flags}, {name: asdict(config)}, lambda: (method.load(config, context.device), None))


def _dump(context: Context, request: Request, config: ResponsesConfig, source: _Source, split: str) -> None:
    from ris_pipeline.maps.respond import fill_responses, open_store
    from ris_pipeline.predict import describe_cut

    dataset = context.open_dataset(split, with_images=True)
    responder, aux = source.load()
    sentences = {e.sentence for ref in dataset.refs for e in ref.expressions}
    if cut := responder.find_cut(sorted(sentences)):
        context.say(f"{dataset.name} {split}: {describe_cut(cut, responder.n_tokens)}")
    with publish(request, force=context.force) as work:
        label = f"responses {split}"
        attributes = {**source.others, **{artifact.name: artifact.digest for artifact in source.inputs}}
        store = open_store(store_path(work.path, split), dataset, responder, attributes)
        missing = store.missing_blocks(scored=aux is not None)
        left = sum(len(store.rows_of_block(block)) for block in missing)
        if left < len(store):
            context.say(f"{label}: {len(store) - left} of {len(store)} sentences are there already")
        with context.console.progress(label, len(store), len(store) - left) as advance:
            fill_responses(responder, aux, dataset, store, missing, config, advance)
        work.counts |= {
            "refs": len(dataset.refs),
            "sentences": dataset.n_expressions,
            "images": len(dataset.images),
            "cut_sentences": len(cut),
        }
        work.host |= {"device": str(context.device)}
