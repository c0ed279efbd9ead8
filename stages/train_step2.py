"""`ris train-step2`: images, sentences and pseudo-labels → a segmentation network."""

from pathlib import Path

from ris_pipeline.artifacts.find import find_weights
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.config import Step2Config
from ris_pipeline.errors import RisError
from stages.common import due, input_of, limit_flags, open_dataset, request_of, resolve_config, show
from stages.make_pseudolabels import say_what_labels_hold
from stages.options import StageOptions


def run(options: StageOptions, init: Path | None, limit: int | None, oracle: bool = False) -> None:
    """Train Step-2 on the pseudo-labels of the train split, or on its true masks as an upper bound."""
    config = resolve_config(options, Step2Config, "step2")
    if init is not None and config.encoders_from_step1:
        raise RisError("--init gives all weights, encoders_from_step1 those of the encoders: choose one")
    init = None if init is None else find_weights(init)
    labels = None if oracle else input_of(options, "pseudolabels", refine=True)
    step1 = input_of(options, "step1") if config.encoders_from_step1 else None
    inputs = [one for one in (labels, step1) if one is not None]
    flags = {"labels": "true" if oracle else "pseudo", **limit_flags(limit)}
    request = request_of(options, "step2", config, inputs=inputs, init=init, flags=flags)
    if due(options, request):
        if labels is not None and "empty" in labels.manifest["counts"]:
            say_what_labels_hold(options, labels.manifest["counts"])
        _train(options, request, config, labels, step1, init, limit)
    show(options, request)


def _train(
    options: StageOptions,
    request: Request,
    config: Step2Config,
    labels: Artifact | None,
    step1: Artifact | None,
    init: Path | None,
    limit: int | None,
) -> None:
    from ris_pipeline.artifacts.layout import WEIGHTS
    from ris_pipeline.networks.load import build_step2
    from ris_pipeline.training.batches import RefLabels, TrueMasks
    from ris_pipeline.training.draws import Plan
    from ris_pipeline.training.tasks import Step2Task
    from stages.training import train_and_publish

    dataset = open_dataset(options, "train", with_images=True).first_refs(limit or 0)
    plan = Plan(dataset, config.batch_size, config.refs_per_image, 0, options.seed)
    train_and_publish(
        options,
        request,
        config,
        plan,
        lambda: Step2Task(build_step2(config, step1=step1.path / WEIGHTS if step1 else None, init=init), config),
        RefLabels(labels.path) if labels else TrueMasks(),
    )
