"""The two trainings, alone or under torchrun: images and sentences → Step-1; with pseudo-labels → Step-2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ris_pipeline.artifacts.find import find, find_weights, load_artifact
from ris_pipeline.artifacts.identity import Artifact, Request, digest_file
from ris_pipeline.artifacts.layout import (
    IMAGE_CACHE,
    INIT,
    PROPOSALS,
    TARGETS,
    TRAIN_SPLIT,
    WEIGHTS,
    flags_of_round,
    store_path,
)
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.chain.pseudolabels import describe_labels
from ris_pipeline.chain.publish import publish_together
from ris_pipeline.config import Step2Config
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import MadeMeanwhileError, RisError
from ris_pipeline.methods import TRIS, Method, find_method, method_of
from ris_pipeline.process.console import report_steps
from ris_pipeline.process.ranks import agree, connected, in_turn, is_first, joined

if TYPE_CHECKING:
    from ris_pipeline.datasets.records import Dataset
    from ris_pipeline.maps.respond import Responder
    from ris_pipeline.training.batches import Batch, Targets
    from ris_pipeline.training.cache import ImageCache
    from ris_pipeline.training.draws import Plan
    from ris_pipeline.training.loop import Task


@joined()
def train_step1(
    data: Context | Card | Path | str,
    config: Any = None,
    *,
    method: str = TRIS,
    init: Path | str | None = None,
    limit: int | None = None,
    cache: bool = False,
    **places: Unpack[Places],
) -> Artifact | None:
    """Train Step-1 on the train split, unless that is done, and return its artifact.

    `data`: a card, its name or file. `config`: a whole configuration, or values that change the card's. `method`: the
    name of a compared method that is trained in Step-1's place; its artifact is a variant of step1. `init`: start from
    these weights, the folder of a trained artifact or a checkpoint. `limit`: a dry trial on the first refs, kept apart
    as a variant that no other stage takes for the whole. `cache`: decode each image once, into runs/<dataset>/cache; it
    changes the speed only. None is returned only where the context says that nothing is
    to be made (--dry-run). Raises RisError for data and settings that cannot be used, and a method without training.

    >>> step1 = train_step1("shapes", {"epochs": 1}, runs="runs")  # doctest: +SKIP
    >>> step1.path  # doctest: +SKIP
    PosixPath('runs/shapes/step1/3f2a9c51d0e7')
    """
    context = open_context(data, **places)
    trained = find_method(method)
    if not trained.trained:
        raise RisError(f"{method} needs no training; run: {context.command(f'ris dump-responses --method {method}')}")
    resolved = context.resolve(trained.config, trained.table, config)
    start = None if init is None else _find_start(Path(init), trained)
    teacher = None
    if trained.teacher:
        teacher = context.find_input("responses", **find_method(trained.teacher).flags, split=TRAIN_SPLIT)
    request = context.request(
        "step1", resolved, settings=config, inputs=[teacher] if teacher else [],
        others=_describe_start(start), flags=_describe_limit(limit), method=trained,
    )  # fmt: skip
    if context.is_due(request):
        module = trained.implementation
        dataset = context.open_dataset(TRAIN_SPLIT, with_images=True).first_refs(limit or 0)
        _train(
            context,
            request,
            resolved,
            module.plan(dataset, resolved, context.seed),
            build_task=lambda: module.build_task(module.build(resolved, start), resolved),
            wrap=lambda network: module.wrap(network, resolved),
            open_targets=partial(_open_targets, context, module, resolved, dataset, teacher) if teacher else None,
            cache=cache,
        )
    return agree(lambda: find(request))


def _open_targets(
    context: Context, module: Any, config: Any, dataset: Dataset, teacher: Artifact, folder: Path
) -> Targets:
    """Return the targets that a method makes of its teacher's maps; what it has to write goes into `folder`."""
    from ris_pipeline.maps.store import ResponseStore

    store = ResponseStore.open(store_path(teacher.path, TRAIN_SPLIT))
    folder.mkdir(exist_ok=True)
    with context.console.progress("targets", dataset.n_expressions) as advance:
        targets: Targets = module.open_targets(config, dataset, store, folder, context.workers, advance)
    return targets


@joined()
def train_step2(
    data: Context | Card | Path | str,
    config: Step2Config | Mapping[str, Any] | None = None,
    *,
    oracle: bool = False,
    proposals: bool = False,
    method: str = TRIS,
    round: int = 1,
    init: Path | str | None = None,
    limit: int | None = None,
    cache: bool = False,
    **places: Unpack[Places],
) -> Artifact | None:
    """Train Step-2 on the refined pseudo-labels of the train split, unless that is done, and return its artifact.

    `oracle`: on the true masks, as an upper bound. `proposals`: on the labels chosen among class-agnostic masks. Both
    are other supervision, and the artifact is another variant. `method`: on the labels made from a compared method's
    maps. `round`: of the labels; each later one is made by the Step-2 of the one before. The others as in
    `train_step1`.
    """
    context = open_context(data, **places)
    resolved = context.resolve(Step2Config, "step2", config)
    if init is not None and resolved.encoders_from_step1:
        raise RisError("--init gives all weights, encoders_from_step1 those of the encoders: choose one")
    if (oracle or proposals) and (oracle == proposals or method != TRIS or round > 1):
        raise RisError("--oracle, --proposals, --method and --round each name the labels to train on: choose one")
    if resolved.encoders_from_step1 and method != TRIS:
        raise RisError(
            f"encoders_from_step1 are TRIS's: give {method} its own start by --set encoders_from_step1=false"
        )
    if round > 1 and method != TRIS:
        raise RisError("--round is of labels that TRIS's Step-2 has made: leave out --method")
    variant = {**find_method(method).flags, **flags_of_round(round)}
    start = None if init is None else find_weights(Path(init))
    kind = {PROPOSALS: True} if proposals else variant if round > 1 else {"refine": True, **variant}
    labels = None if oracle else context.find_input("pseudolabels", **kind)
    step1 = context.find_input("step1") if resolved.encoders_from_step1 else None
    inputs = [artifact for artifact in (labels, step1) if artifact is not None]
    flags = {"labels": "true" if oracle else PROPOSALS if proposals else "pseudo", **variant, **_describe_limit(limit)}
    request = context.request(
        "step2", resolved, settings=config, inputs=inputs, others=_describe_start(start), flags=flags
    )
    if context.is_due(request):
        from ris_pipeline.methods.tris import Step2Responder
        from ris_pipeline.networks.load import step2_from_config
        from ris_pipeline.training.batches import RefLabels, TrueMasks
        from ris_pipeline.training.draws import Plan
        from ris_pipeline.training.tasks import Step2Task

        if labels is not None:
            context.say(describe_labels(labels.manifest["counts"]))
        dataset = context.open_dataset(TRAIN_SPLIT, with_images=True).first_refs(limit or 0)
        sizes = resolved.batch_size, resolved.refs_per_image
        plan = Plan(dataset, *sizes, n_negatives=0, seed=context.seed, mirror=resolved.mirror)
        targets = RefLabels(labels.path) if labels else TrueMasks()
        encoders = step1.path / WEIGHTS if step1 else None
        _train(
            context,
            request,
            resolved,
            plan,
            build_task=lambda: Step2Task(step2_from_config(resolved, start, step1=encoders), resolved),
            wrap=lambda network: Step2Responder(network, resolved.input_size),
            open_targets=lambda folder: targets,
            cache=cache,
        )
    return agree(lambda: find(request))


def _find_start(init: Path, method: Method) -> Path:
    """Return the weights that a training starts from; RisError where another method trained them."""
    artifact = load_artifact(init)
    if artifact is not None and method_of(artifact).name != method.name:
        raise RisError(f"{init}: trained by {method_of(artifact).name}, not by {method.name}; give weights of that")
    return find_weights(init)


def _describe_start(start: Path | None) -> dict[str, str]:
    return {} if start is None else {INIT: digest_file(start)}


def _describe_limit(limit: int | None) -> dict[str, str | bool]:
    return {} if limit is None else {"limit": f"first-{limit}"}


def _train(
    context: Context,
    request: Request,
    config: Any,
    plan: Plan,
    *,
    build_task: Callable[[], Task[Batch]],
    wrap: Callable[[Any], Responder],
    open_targets: Callable[[Path], Targets] | None,
    cache: bool,
) -> None:
    """Train a task and publish its network; under torchrun every process trains and the first one writes.

    `wrap`: makes a responder of the network, for validation. `open_targets`: returns the labels to learn from; what it
    has to write goes into the folder that it is given.
    """
    from ris_pipeline.training.batches import RefBatches
    from ris_pipeline.training.loop import train

    device = context.device
    with connected(device) as ranks:
        plan = replace(plan, ranks=ranks)
        source = RefBatches(plan, config.epochs, config.input_size)
        with suppress(MadeMeanwhileError), publish_together(context, request, apart=True) as work:
            task = in_turn(lambda: _build(build_task, context.seed))
            if open_targets is not None:
                source.targets = in_turn(lambda: open_targets(work.path / TARGETS))
            if cache:
                source.cache = in_turn(lambda: _open_cache(context, plan.dataset, config.input_size))
            validate = _open_validation(context, config, wrap, task) if is_first() else None
            with context.console.progress(request.stage, source.n_steps) as advance:
                n_steps = train(
                    task, source, work.path, device=device, precision=context.precision, workers=context.workers,
                    ranks=ranks, seed=context.seed, report=report_steps(advance),
                    validate=validate, select=config.select, compiled=context.compiled,
                )  # fmt: skip
            work.counts |= {"steps": n_steps, "refs": len(plan.dataset.refs), "sentences": plan.dataset.n_expressions}
            work.host |= {"device": str(device), "ranks": ranks.n_ranks}


def _open_cache(context: Context, dataset: Dataset, size: int) -> ImageCache:
    from ris_pipeline.training.cache import open_cache

    folder = context.runs / context.card.name / IMAGE_CACHE
    images = context.digest_images(dataset.split)
    with context.console.progress("images", len(dataset.refs_of_image)) as advance:
        return open_cache(folder, images, dataset, size, context.workers, advance)


def _open_validation(
    context: Context,
    config: Any,
    wrap: Callable[[Any], Responder],
    task: Task[Batch],
) -> Callable[[], dict[str, float]] | None:
    """Return a function that scores the task's network as it is; None without a split to validate on."""
    from ris_pipeline.scoring.validate import take_refs, validate

    if not config.validate:
        return None
    everything = context.open_dataset(config.validate, with_images=True)
    dataset = take_refs(everything, config.validate_refs, config.select)
    network = wrap(task.network)
    return lambda: validate(network, dataset, config.batch_size)


def _build(build_task: Callable[[], Task[Batch]], seed: int) -> Task[Batch]:
    """Return the task, with the same random numbers in each process."""
    import torch

    torch.manual_seed(seed)
    return build_task()
