"""`ris cost`: parameters, multiplications and time of Step-1, Step-2 and their parts, beside the paper's Table 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.errors import RisError, did_you_mean
from stages.console import draw_table, emit
from stages.context import Compute, Output, Places, open_context

if TYPE_CHECKING:
    from ris_pipeline.chain.context import Context

Config = Step1Config | Step2Config
STAGES: dict[str, type[Config]] = {"step1": Step1Config, "step2": Step2Config}
PAPER: dict[str, Mapping[str, Config]] = {"paper": {"step1": Step1Config(), "step2": Step2Config()}}


def run(places: Places, compute: Compute, output: Output) -> None:
    """Count and time the networks, beside Table 2.

    Reads:    the card's configuration; no weights: values are random
    Writes:   stdout: parameters, multiplications, milliseconds
    Example:  ris cost --dataset refcoco --device cpu
    """
    from ris_pipeline.cost import REPEATS, WARM_UP, is_papers, measure_cost
    from ris_pipeline.scoring.paper import load_paper_tables
    from ris_pipeline.scoring.rows import find_row

    context = open_context(places, compute, output=output)
    chosen = _resolve(context)
    networks = dict(PAPER)
    if not all(map(is_papers, chosen.values())):
        networks[context.card.name] = chosen
    results = []
    with context.console.progress("cost, passes", 2 * (WARM_UP + REPEATS) * len(networks)) as advance:
        for name, configs in networks.items():
            for stage, config in configs.items():
                costs = measure_cost(config, context.device, compute.precision, advance)
                paper = load_paper_tables()["table2_cost_referit_test"][find_row(stage).paper]
                results.append({
                    "network": name, "stage": stage, "input_size": config.input_size, "device": str(context.device),
                    "precision": compute.precision, "parts": [asdict(cost) for cost in costs],
                    "paper": paper if name == "paper" else None,
                })  # fmt: skip
    conditions = f"{context.device}, {compute.precision}, median of {REPEATS}, random values"
    emit(output, f"one image, one sentence of 20 tokens; {conditions}\n{_render(results)}", results)


def _resolve(context: Context) -> dict[str, Config]:
    """Return the configurations of the stages; each takes the assignments whose keys it has."""
    keys = {stage: {field.name for field in fields(cls)} for stage, cls in STAGES.items()}
    known = set().union(*keys.values())
    for key in context.assignments:
        if key not in known:
            raise RisError(f"unknown key {key!r} of step1 and step2{did_you_mean(key, sorted(known))}")
    own = {stage: {key: value for key, value in context.assignments.items() if key in keys[stage]} for stage in STAGES}
    return {stage: replace(context, assignments=own[stage]).resolve(cls, stage) for stage, cls in STAGES.items()}


def _render(results: Sequence[Mapping[str, Any]]) -> str:
    from ris_pipeline.scoring.rows import find_row

    sections = []
    for result in results:
        lines = [
            ["", cost["part"], f"{cost['parameters']:,}", f"{cost['macs'] / 1e9:.3f}", f"{cost['ms']:.1f}"]
            for cost in result["parts"]
        ]
        lines[0][0] = f"{find_row(result['stage']).title} ({result['network']}, {result['input_size']} px)"
        if paper := result["paper"]:
            figures = [f"{paper['params']} M", f"{paper['macs']:.2f}", f"{paper['ms']} (GTX 1080 Ti)"]
            lines.append(["", "the paper's Table 2", *figures])
        sections.append(lines)
    return draw_table(["network", "part", "parameters", "GMAC", "ms"], sections, n_words=2)
