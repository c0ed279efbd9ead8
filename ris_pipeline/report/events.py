"""The training curves as event files of TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import METRICS
from ris_pipeline.errors import RisError
from ris_pipeline.report.curves import load_curves


def write_events(artifacts: Iterable[Artifact], folder: Path) -> Iterator[Path]:
    """Write the metrics of each artifact that has any below `folder`, and yield where. RisError without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RisError("TensorBoard is not installed; pip install -c constraints.txt -e '.[tensorboard]'") from error
    for artifact in artifacts:
        if (artifact.path / METRICS).is_file():
            target = folder / artifact.name / artifact.digest
            with SummaryWriter(str(target)) as writer:
                for name, (steps, values) in load_curves(artifact.path / METRICS).items():
                    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                        writer.add_scalar(name, value, int(step))
            yield target
