"""`ris cost`: parameters, multiplications and time of the networks, beside the paper's Table 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.errors import RisError, did_you_mean
from stages.console import draw_table, emit
from stages.context import Device, Output, Places, Precision, open_context

if TYPE_CHECKING:
    from ris_pipeline.chain.context import Context
    from ris_pipeline.cost import Cost

Config = Step1Config | Step2Config
STAGES: dict[str, type[Config]] = {"step1": Step1Config, "step2": Step2Config}
PAPER_SIDE = 320  # pixels; Table 2
PAPER: dict[str, Mapping[str, Config]] = {"paper": {"step1": Step1Config(), "step2": Step2Config()}}
# Where a method's figure is not the paper's.
REMARKS = {
    "amr": "with the image encoder of its CLIP, which is not used, 156.80 M; 0.07 M of the paper's stay unexplained",
}


def run(
    places: Places,
    output: Output,
    methods: Annotated[
        bool, typer.Option("--methods", help="Those of the compared methods too, at 320 pixels a side.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Count and time the networks, beside Table 2.

    Reads:    the card's configuration; no weights: values are random
    Writes:   stdout: parameters, multiplications, milliseconds
    Example:  ris cost --dataset refcoco --device cpu
    """
    from ris_pipeline.cost import REPEATS, WARM_UP, is_papers, measure_cost, measure_method
    from ris_pipeline.methods import list_compared
    from ris_pipeline.scoring.paper import load_paper_tables
    from ris_pipeline.scoring.rows import find_row

    context = open_context(places, output=output, device=device, precision=precision)
    chosen = _resolve(context)
    networks = dict(PAPER)
    if not all(map(is_papers, chosen.values())):
        networks[context.card.name] = chosen
    compared = list(list_compared()) if methods else []
    results: list[dict[str, Any]] = []

    def add(network: str, stage: str, input_size: int, costs: Sequence[Cost]) -> None:
        paper = load_paper_tables()["table2_cost_referit_test"].get(find_row(stage).paper)
        results.append({
            "network": network, "stage": stage, "input_size": input_size, "device": str(context.device),
            "precision": context.precision, "parts": [asdict(cost) for cost in costs],
            "paper": paper if network == "paper" else None, "remark": REMARKS.get(stage),
        })  # fmt: skip

    n_networks = 2 * len(networks) + len(compared)
    with context.console.progress("cost, passes", (WARM_UP + REPEATS) * n_networks) as advance:
        for name, configs in networks.items():
            for stage, config in configs.items():
                add(name, stage, config.input_size, measure_cost(config, context.device, context.precision, advance))
        for method in compared:
            config = replace(method.config(), input_size=PAPER_SIDE)
            cost = measure_method(method, config, context.device, context.precision, advance)
            add("paper", method.name, PAPER_SIDE, [cost])
    conditions = f"{context.device}, {context.precision}, median of {REPEATS}, random values"
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
    table = draw_table(["network", "part", "parameters", "GMAC", "ms"], sections, n_words=2)
    remarks = [f"{find_row(r['stage']).title}: {r['remark']}" for r in results if r["remark"]]
    return "\n".join([table, *remarks])
