"""`ris cost`: parameters, multiplications and time of Step-1, Step-2 and their parts, beside the paper's Table 2."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from ris_pipeline.config import Step1Config, Step2Config, load_config_file, parse_assignments, resolve
from ris_pipeline.errors import RisError, did_you_mean
from ris_pipeline.scoring.paper import load_paper_tables
from stages.common import device_of
from stages.options import StageOptions, card_of, emit
from stages.progress import progress

if TYPE_CHECKING:
    from ris_pipeline.cost import Cost
    from ris_pipeline.networks.step1 import Step1
    from ris_pipeline.networks.step2 import Step2

Config = Step1Config | Step2Config
STAGES: dict[str, type[Config]] = {"step1": Step1Config, "step2": Step2Config}
NAMES = {"step1": "Step-1", "step2": "Step-2"}  # the paper's
# Neither the values of the weights nor how they are trained changes what a network costs.
SHAPES = ("clip", "image_encoder", "input_size", "hidden", "decoder_width")


def run(options: StageOptions) -> None:
    """Count and time the paper's networks, and those configured for the data set where they are others."""
    chosen = {stage: _resolve(options, stage) for stage in STAGES}
    _check_keys(options)
    networks = paper_networks()
    if any(_differs(config, STAGES[stage]()) for stage, config in chosen.items()):
        networks[card_of(options).name] = chosen
    results = []
    from ris_pipeline.cost import REPEATS, WARM_UP

    device = device_of(options)
    with progress(options, "cost, passes", 2 * (WARM_UP + REPEATS) * len(networks)) as advance:
        for name, configs in networks.items():
            for stage, config in configs.items():
                costs = _measure(options, config, advance)
                paper = load_paper_tables()["table2_cost_referit_test"][NAMES[stage]] if name == "paper" else None
                results.append({
                    "network": name, "stage": stage, "input_size": config.input_size, "device": str(device),
                    "precision": options.precision, "parts": [asdict(cost) for cost in costs], "paper": paper,
                })  # fmt: skip
    emit(options, _render(results, f"{device}, {options.precision}, median of {REPEATS}, random values"), results)


def paper_networks() -> dict[str, dict[str, Config]]:
    """The networks of Table 2: the defaults of both stages."""
    return {"paper": {stage: cls() for stage, cls in STAGES.items()}}


def _resolve(options: StageOptions, stage: str) -> Config:
    """The configuration of a stage, of --set only the keys that the stage has."""
    cls = STAGES[stage]
    file = load_config_file(options.config, stage) if options.config else {}
    known = {key: value for key, value in parse_assignments(options.set or ()).items() if key in _keys(cls)}
    return resolve(cls, card_of(options).config.get(stage, {}), file, known)


def _check_keys(options: StageOptions) -> None:
    known = {key for cls in STAGES.values() for key in _keys(cls)}
    for key in parse_assignments(options.set or ()):
        if key not in known:
            raise RisError(f"unknown key {key!r} of step1 and step2{did_you_mean(key, sorted(known))}")


def _keys(cls: type[Config]) -> set[str]:
    return {one.name for one in fields(cls)}


def _differs(a: Config, b: Config) -> bool:
    return any(getattr(a, key, None) != getattr(b, key, None) for key in SHAPES)


def _measure(options: StageOptions, config: Config, advance: Any) -> "list[Cost]":
    import torch

    from ris_pipeline.cost import count_parts, measure_parts
    from ris_pipeline.networks.load import build_step1, build_step2

    network: Step1 | Step2
    if isinstance(config, Step1Config):
        network = build_step1(replace(config, clip_weights=None, image_encoder_weights=None, project_from_clip=False))
    else:
        network = build_step2(replace(config, clip_weights=None, image_encoder_weights=None))
    device = device_of(options)
    network.to(device).to(memory_format=torch.channels_last).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        timed = measure_parts(network, config.input_size, advance)
    counted = count_parts(network.to("meta"), config.input_size)
    return [replace(cost, ms=ms) for cost, ms in zip(counted, timed, strict=True)]


def _render(results: Sequence[Mapping[str, Any]], how: str) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("network", "part"):
        table.add_column(title, no_wrap=True)
    for title in ("parameters", "GMAC here", "as released", "by fvcore", "ms"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        label = f"{NAMES[result['stage']]} ({result['network']}, {result['input_size']} px)"
        for cost in result["parts"]:
            macs = [f"{cost[key] / 1e9:.3f}" for key in ("macs", "macs_released", "macs_fvcore")]
            last = cost is result["parts"][-1]
            table.add_row(
                label, cost["part"], f"{cost['parameters']:,}", *macs, f"{cost['ms']:.1f}",
                end_section=last and not result["paper"],
            )  # fmt: skip
            label = ""
        if result["paper"]:
            paper = result["paper"]
            row = (
                "",
                "the paper's Table 2",
                f"{paper['params']} M",
                "",
                "",
                f"{paper['macs']:.2f}",
                f"{paper['ms']} (GTX 1080 Ti)",
            )
            table.add_row(*row, end_section=True)
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(table)
    title = f"one image, one sentence of 20 tokens; {how}"
    return "\n".join([title, *(line.rstrip() for line in capture.get().splitlines()[1:-1])])
