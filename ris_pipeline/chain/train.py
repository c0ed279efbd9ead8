"""The two trainings: images and sentences → Step-1; those and pseudo-labels → Step-2. Alone, or under torchrun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ris_pipeline.artifacts.find import find, find_weights
from ris_pipeline.artifacts.identity import Artifact, Request, digest_file
from ris_pipeline.artifacts.layout import INIT, WEIGHTS
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.chain.pseudolabels import describe_labels
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import RisError
from ris_pipeline.process.console import report_steps

if TYPE_CHECKING:
    from ris_pipeline.maps.respond import Responder
    from ris_pipeline.process.ranks import Ranks
    from ris_pipeline.training.batches import Batch, Targets
    from ris_pipeline.training.draws import Plan
    from ris_pipeline.training.loop import Task


def train_step1(
    data: Context | Card | Path | str,
    config: Step1Config | Mapping[str, Any] | None = None,
    *,
    init: Path | str | None = None,
    limit: int | None = None,
    **places: Unpack[Places],
) -> Artifact | None:
    """Train Step-1 on the train split, unless that is done, and return its artifact.

    `data`: a card, its name or file. `config`: a whole configuration, or values that change the card's. `init`: start
    from these weights, the folder of a trained artifact or a checkpoint. `limit`: a dry trial on the first refs, kept
    apart as a variant that no other stage takes for the whole. None is returned only where the context says that
    nothing is to be made (--dry-run). Raises RisError for data and settings that cannot be used.

    >>> step1 = train_step1("shapes", {"epochs": 1}, runs="runs")  # doctest: +SKIP
    >>> step1.path  # doctest: +SKIP
    PosixPath('runs/shapes/step1/3f2a9c51d0e7')
    """
    context = open_context(data, **places)
    resolved = context.resolve(Step1Config, "step1", config)
    start = None if init is None else find_weights(Path(init))
    request = context.request(
        "step1", resolved, settings=config, others=_describe_start(start), flags=_describe_limit(limit)
    )
    if context.is_due(request):
        from ris_pipeline.methods.tris import Step1Responder
        from ris_pipeline.networks.load import build_aux, build_step1
        from ris_pipeline.training.draws import Plan
        from ris_pipeline.training.tasks import Step1Task

        dataset = context.open_dataset("train", with_images=True).first_refs(limit or 0)
        plan = Plan(dataset, resolved.batch_size, resolved.refs_per_image, resolved.n_negatives, context.seed)
        _train(
            context, request, resolved, plan, Step1Responder,
            lambda: Step1Task(build_step1(resolved, init=start), build_aux(resolved), resolved),
        )  # fmt: skip
    return find(request)


def train_step2(
    data: Context | Card | Path | str,
    config: Step2Config | Mapping[str, Any] | None = None,
    *,
    oracle: bool = False,
    init: Path | str | None = None,
    limit: int | None = None,
    **places: Unpack[Places],
) -> Artifact | None:
    """Train Step-2 on the refined pseudo-labels of the train split, unless that is done, and return its artifact.

    `oracle`: on the true masks, as an upper bound. The others as in `train_step1`.
    """
    context = open_context(data, **places)
    resolved = context.resolve(Step2Config, "step2", config)
    if init is not None and resolved.encoders_from_step1:
        raise RisError("--init gives all weights, encoders_from_step1 those of the encoders: choose one")
    start = None if init is None else find_weights(Path(init))
    labels = None if oracle else context.find_input("pseudolabels", refine=True)
    step1 = context.find_input("step1") if resolved.encoders_from_step1 else None
    inputs = [artifact for artifact in (labels, step1) if artifact is not None]
    flags = {"labels": "true" if oracle else "pseudo", **_describe_limit(limit)}
    request = context.request(
        "step2", resolved, settings=config, inputs=inputs, others=_describe_start(start), flags=flags
    )
    if context.is_due(request):
        from ris_pipeline.methods.tris import Step2Responder
        from ris_pipeline.networks.load import build_step2
        from ris_pipeline.training.batches import RefLabels, TrueMasks
        from ris_pipeline.training.draws import Plan
        from ris_pipeline.training.tasks import Step2Task

        if labels is not None:
            context.say(describe_labels(labels.manifest["counts"]))
        dataset = context.open_dataset("train", with_images=True).first_refs(limit or 0)
        plan = Plan(dataset, resolved.batch_size, resolved.refs_per_image, 0, context.seed)
        encoders = step1.path / WEIGHTS if step1 else None
        _train(
            context, request, resolved, plan, Step2Responder,
            lambda: Step2Task(build_step2(resolved, step1=encoders, init=start), resolved),
            RefLabels(labels.path) if labels else TrueMasks(),
        )  # fmt: skip
    return find(request)


def _describe_start(start: Path | None) -> dict[str, str]:
    return {} if start is None else {INIT: digest_file(start)}


def _describe_limit(limit: int | None) -> dict[str, str | bool]:
    return {} if limit is None else {"limit": f"first-{limit}"}


def _train(
    context: Context,
    request: Request,
    config: Step1Config | Step2Config,
    plan: Plan,
    responder: Callable[[Any, int], Responder],
    build_task: Callable[[], Task[Batch]],
    targets: Targets | None = None,
) -> None:
    """Train what build_task gives and publish it; under torchrun every process trains and the first one writes."""
    from ris_pipeline.process.ranks import find_ranks, joined, wait
    from ris_pipeline.training.batches import RefBatches
    from ris_pipeline.training.loop import train

    ranks = find_ranks()
    plan = replace(plan, rank=ranks.rank, n_ranks=ranks.n_ranks)
    device = ranks.choose_device(context.device)
    source = RefBatches(plan, config.epochs, config.input_size, targets)
    with joined(ranks, device):
        task = _build_in_turn(build_task, ranks, context.seed)
        work_of_this_rank = (
            publish(request, force=context.force) if ranks.rank == 0 else nullcontext(Work(request.partial, False))
        )
        with work_of_this_rank as work:
            wait()  # for the folder, and for the checkpoint that may lie in it
            validate = _open_validation(context, config, responder, task) if ranks.rank == 0 else None
            with context.console.progress(request.stage, source.n_steps) as advance:
                n_steps = train(
                    task, source, work.path, device=device, precision=context.precision, workers=context.workers,
                    ranks=ranks, seed=context.seed, report=report_steps(advance),
                    validate=validate, select=config.select,
                )  # fmt: skip
            work.counts |= {"steps": n_steps, "refs": len(plan.dataset.refs), "sentences": plan.dataset.n_expressions}
            work.host |= {"device": str(device), "ranks": ranks.n_ranks}


def _open_validation(
    context: Context,
    config: Step1Config | Step2Config,
    responder: Callable[[Any, int], Responder],
    task: Task[Batch],
) -> Callable[[], dict[str, float]] | None:
    """Return a function that scores the task's network as it is; None without a split to validate on."""
    from ris_pipeline.scoring.validate import take_refs, validate

    if not config.validate:
        return None
    everything = context.open_dataset(config.validate, with_images=True)
    dataset = take_refs(everything, config.validate_refs, config.select)
    network = responder(task.network, config.input_size)
    return lambda: validate(network, dataset, config.batch_size)


def _build_in_turn(build_task: Callable[[], Task[Batch]], ranks: Ranks, seed: int) -> Task[Batch]:
    """Return the task of this process; the first one builds before the others, which find downloaded weights whole."""
    import torch

    from ris_pipeline.process.ranks import wait

    if ranks.rank > 0:
        wait()
    torch.manual_seed(seed)
    task = build_task()
    if ranks.rank == 0:
        wait()
    return task
