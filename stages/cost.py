"""`ris cost`: parameters, multiplications and time of Step-1, Step-2 and their parts, beside the paper's Table 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from ris_pipeline.config import Step1Config, Step2Config, load_config_file, parse_assignments, resolve
from ris_pipeline.errors import RisError, did_you_mean
from ris_pipeline.scoring.paper import load_paper_tables
from ris_pipeline.scoring.rows import find_row
from stages.common import device_of
from stages.options import StageOptions, card_of, draw_table, emit
from stages.progress import progress

Config = Step1Config | Step2Config
STAGES: dict[str, type[Config]] = {"step1": Step1Config, "step2": Step2Config}


def run(options: StageOptions) -> None:
    """Count and time the paper's networks, and those configured for the data set where they are others."""
    from ris_pipeline.cost import REPEATS, WARM_UP, is_papers, measure_cost

    chosen = {stage: _resolve(options, stage) for stage in STAGES}
    networks = paper_networks()
    if not all(map(is_papers, chosen.values())):
        networks[card_of(options).name] = chosen
    results = []
    device = device_of(options)
    with progress(options, "cost, passes", 2 * (WARM_UP + REPEATS) * len(networks)) as advance:
        for name, configs in networks.items():
            for stage, config in configs.items():
                costs = measure_cost(config, device, options.precision, advance)
                paper = load_paper_tables()["table2_cost_referit_test"][find_row(stage).paper]
                results.append({
                    "network": name, "stage": stage, "input_size": config.input_size, "device": str(device),
                    "precision": options.precision, "parts": [asdict(cost) for cost in costs],
                    "paper": paper if name == "paper" else None,
                })  # fmt: skip
    how = f"one image, one sentence of 20 tokens; {device}, {options.precision}, median of {REPEATS}, random values"
    emit(options, f"{how}\n{_render(results)}", results)


def paper_networks() -> dict[str, dict[str, Config]]:
    """The networks of Table 2: the defaults of both stages."""
    return {"paper": {stage: cls() for stage, cls in STAGES.items()}}


def _resolve(options: StageOptions, stage: str) -> Config:
    """The configuration of a stage, of --set only the keys that the stage has."""
    keys = {name: {field.name for field in fields(cls)} for name, cls in STAGES.items()}
    known = set().union(*keys.values())
    assigned = parse_assignments(options.set or ())
    for key in assigned:
        if key not in known:
            raise RisError(f"unknown configuration key {key!r} of step1 and step2{did_you_mean(key, sorted(known))}")
    file = load_config_file(options.config, stage) if options.config else {}
    own = {key: value for key, value in assigned.items() if key in keys[stage]}
    return resolve(STAGES[stage], card_of(options).config.get(stage, {}), file, own)


def _render(results: Sequence[Mapping[str, Any]]) -> str:
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
