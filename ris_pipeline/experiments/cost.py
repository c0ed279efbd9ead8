"""How large the network behind a point of an experiment is."""

from __future__ import annotations

from ris_pipeline.artifacts.layout import METHOD
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.cost import count_method, count_network
from ris_pipeline.experiments.run import Point
from ris_pipeline.methods import TRIS, find_method
from ris_pipeline.scoring.rows import find_row


def count_point(point: Point) -> tuple[int, int] | None:
    """Return the parameters and multiply-accumulates of the network that answers for a point; None without one."""
    row, context = find_row(point.entry.scored), point.context
    method = find_method(str(row.flags.get(METHOD, TRIS)))
    if row.kind == "network":
        return count_network(context.resolve(Step2Config, "step2"))
    if row.kind != "maps":
        return None
    if not method.is_tris:
        settings = context.resolve(method.config, method.table, beside=not method.trained)
        return count_method(method, settings)
    return count_network(context.resolve(Step1Config, "step1"))
