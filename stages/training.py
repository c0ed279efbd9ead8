"""What the two training stages share: device, ranks, progress and the log."""

from ris_pipeline.artifacts import Work
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.training.batches import Labels
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import train
from ris_pipeline.training.tasks import Task
from stages.common import StageOptions, device_of, log_metrics, progress


def fit(
    options: StageOptions,
    label: str,
    task: Task,
    plan: Plan,
    config: Step1Config | Step2Config,
    work: Work,
    labels: Labels | None = None,
) -> None:
    """Run the training loop in the work folder; losses go to its metrics.jsonl."""
    n_steps = config.epochs * plan.n_steps
    device = device_of(options)
    with progress(options, label, n_steps) as advance:

        def report(step: int, losses: dict[str, float]) -> None:
            log_metrics(work.path, step=step, **losses)
            advance(1, **losses)

        train(
            task, plan, config, folder=work.path, input_size=config.input_size, device=device,
            precision=options.precision, workers=options.workers, report=report, labels=labels,
        )  # fmt: skip
    work.counts |= {"steps": n_steps, "refs": len(plan.dataset.refs), "sentences": plan.dataset.n_expressions}
    work.host |= {"device": str(device)}
