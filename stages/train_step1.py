"""`ris train-step1`: images and sentences → a response network."""

from pathlib import Path

from ris_pipeline.artifacts.find import find_weights
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.config import Step1Config
from stages.common import due, limit_flags, open_dataset, request_of, resolve_config, show
from stages.options import StageOptions


def run(options: StageOptions, init: Path | None, limit: int | None) -> None:
    """Train Step-1 on the train split, or on its first refs, unless that is done."""
    config = resolve_config(options, Step1Config, "step1")
    init = None if init is None else find_weights(init)
    request = request_of(options, "step1", config, init=init, flags=limit_flags(limit))
    if due(options, request):
        _train(options, request, config, init, limit)
    show(options, request)


def _train(options: StageOptions, request: Request, config: Step1Config, init: Path | None, limit: int | None) -> None:
    from ris_pipeline.networks.load import build_aux, build_step1
    from ris_pipeline.training.draws import Plan
    from ris_pipeline.training.tasks import Step1Task
    from stages.training import train_and_publish

    dataset = open_dataset(options, "train", with_images=True)
    plan = Plan(
        dataset.first_refs(limit or 0), config.batch_size, config.refs_per_image, config.n_negatives, options.seed
    )
    train_and_publish(
        options, request, config, plan,
        lambda: Step1Task(build_step1(config, init=init), build_aux(config), config),
    )  # fmt: skip
