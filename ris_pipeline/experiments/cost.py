"""What the network behind a point of an experiment costs."""

from __future__ import annotations

import torch

from ris_pipeline.artifacts.layout import METHOD
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.cost import Cost, measure_cost, measure_method
from ris_pipeline.experiments.run import Point
from ris_pipeline.methods import TRIS, find_method
from ris_pipeline.scoring.rows import find_row


def count_network(point: Point) -> Cost | None:
    """Return the cost of the network that answers for a point, with random values; None where there is none."""
    row, context = find_row(point.entry.scored), point.context
    method = find_method(str(row.flags.get(METHOD, TRIS)))
    if row.kind == "network":
        step2 = context.resolve(Step2Config, "step2")
        return measure_cost(step2, torch.device("cpu"), "fp32", lambda: None)[-1]
    if row.kind != "maps":
        return None
    if not method.is_tris:
        settings = context.resolve(method.config, method.table, beside=not method.trained)
        return measure_method(method, settings, torch.device("cpu"), "fp32", lambda: None)
    return measure_cost(context.resolve(Step1Config, "step1"), torch.device("cpu"), "fp32", lambda: None)[-1]
