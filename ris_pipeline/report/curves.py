"""The losses and the learning rate that a training wrote, by step; and the same as event files of TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import TRAINING_LOG
from ris_pipeline.errors import RisError

Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # {name: (steps, values)}


def load_curves(path: Path) -> Curves:
    """Return {name: (steps float64 (S,), values float64 (S,))} of a metrics.jsonl, in the order of its first line.

    A step that occurs twice, because a run was resumed before it, counts as last written. What is no finite number
    is left out. Raises RisError, naming the line, where one is not a JSON object with a step.
    """
    records: dict[float, dict[str, float]] = {}
    names: dict[str, None] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                step = float(record.pop("step"))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise RisError(f"{path}: line {number} is no record of a step ({error}); train again") from error
            records[step] = {name: float(value) for name, value in record.items() if _is_number(value)}
            names |= dict.fromkeys(records[step])
    curves = {}
    for name in names:
        points = sorted((step, record[name]) for step, record in records.items() if name in record)
        steps, values = np.array(points, np.float64).T
        curves[name] = steps, values
    return curves


def summarise_curves(curves: Curves) -> str:
    """Return in words where each curve begins and ends: the means of its first and its last tenth."""
    parts = []
    for name, (_, values) in curves.items():
        tenth = max(1, len(values) // 10)
        parts.append(f"{name} {values[:tenth].mean():.3g} → {values[-tenth:].mean():.3g}")
    return f"Means of the first and last tenth: {', '.join(parts)}." if parts else ""


def write_events(artifacts: Iterable[Artifact], folder: Path) -> Iterator[Path]:
    """Write the metrics of each artifact that has any below `folder`, and yield where. RisError without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RisError("TensorBoard is not installed; pip install -c constraints.txt -e '.[tensorboard]'") from error
    for artifact in artifacts:
        if (artifact.path / TRAINING_LOG).is_file():
            target = folder / artifact.name / artifact.digest
            with SummaryWriter(str(target)) as writer:
                for name, (steps, values) in load_curves(artifact.path / TRAINING_LOG).items():
                    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                        writer.add_scalar(name, value, int(step))
            yield target


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
