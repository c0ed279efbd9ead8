"""`ris train-step1`: images and sentences → a response network."""

from ris_pipeline.artifacts.identity import Request
from ris_pipeline.config import Step1Config
from stages.common import due, open_dataset, request_of, resolve_config, show
from stages.options import StageOptions


def run(options: StageOptions) -> None:
    """Train Step-1 on the train split, unless that is done."""
    config = resolve_config(options, Step1Config, "step1")
    request = request_of(options, "step1", config)
    if due(options, request):
        _train(options, request, config)
    show(options, request)


def _train(options: StageOptions, request: Request, config: Step1Config) -> None:
    from ris_pipeline.networks.load import build_aux, build_step1
    from ris_pipeline.training.draws import Plan
    from ris_pipeline.training.tasks import Step1Task
    from stages.training import train_and_publish

    dataset = open_dataset(options, "train", with_images=True)
    plan = Plan(dataset, config.batch_size, config.refs_per_image, config.n_negatives, options.seed)
    train_and_publish(options, request, config, plan, lambda: Step1Task(build_step1(config), build_aux(config), config))
