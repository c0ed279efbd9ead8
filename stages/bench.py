"""`ris bench`: what each stage does in a second on this machine, and how long a whole run takes at that rate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ris_pipeline.errors import RisError, did_you_mean, suggest_path
from ris_pipeline.process.workers import WORKERS
from stages.console import draw_table, emit
from stages.context import Device, Output, Places, Precision, Workers, open_context

if TYPE_CHECKING:
    from ris_pipeline.bench import Throughput


def run(
    places: Places,
    output: Output,
    stage: Annotated[list[str] | None, typer.Option(metavar="<str>", help="Stage to time; repeatable; or all.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches that are timed, after one that warms up.")] = 2,
    batch: Annotated[int | None, typer.Option(min=1, help="Size of all batches, in place of the configured.")] = None,
    against: Annotated[Path | None, typer.Option(metavar="FILE", help="What --json printed, to compare with.")] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = WORKERS,
) -> None:
    """Time each stage on made-up data of a data set's sizes.

    Reads:    the card's configuration; no weights: values are random
    Writes:   stdout: units a second, GFLOP, memory, hours of a whole run
    Example:  ris bench --dataset refcoco --stage all --batch 4
    """
    import platform
    from tempfile import TemporaryDirectory

    import torch

    from ris_pipeline.bench import STAGES, Bench, check_settings, compare, find_shape

    chosen = list(STAGES) if not stage or "all" in stage else stage
    for name in chosen:
        if name not in STAGES:
            raise RisError(f"--stage {name}: no such stage{did_you_mean(name, STAGES)}")
    context = open_context(places, output=output, device=device, precision=precision, workers=workers)
    check_settings(context)
    other = None if against is None else _read(against)
    shape = find_shape(context)
    results: list[Throughput] = []
    with TemporaryDirectory(prefix="ris-bench-") as folder, context.console.progress("bench", len(chosen)) as advance:
        bench = Bench(context, Path(folder), shape, steps, batch)
        for name in chosen:
            for result in bench.measure(name):
                results.append(result)
                context.say(_describe_rate(result))
            advance()
    on_cuda = context.device.type == "cuda"
    machine = torch.cuda.get_device_name(context.device) if on_cuda else platform.machine()
    value = {
        "dataset": context.card.name, "device": str(context.device), "precision": context.precision, "workers": workers,
        "machine": machine,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "batch": batch, "steps": steps,
        "shape": asdict(shape), "peak_tflops": {name: peak / 1e12 for name, peak in bench.peaks.items()},
        "stages": [asdict(result) for result in results],
    }  # fmt: skip
    lines = [_describe(value), _render(results, compare(results, other["stages"]) if other else {})]
    if other:
        lines.append(f"against {against}: {_describe(other)}")
    emit(output, "\n".join(lines), value)


def _describe_rate(row: Throughput) -> str:
    share = "" if row.share is None else f", {row.share:.0%} of the peak"
    return f"{row.stage}: {row.per_second:.3g} {row.unit} a second in {row.precision}{share}"


def _read(path: Path) -> dict[str, Any]:
    """Return an earlier result; RisError where the file holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RisError(f"{path}: cannot be read: {error.strerror}{suggest_path(path)}") from error
    except ValueError as error:
        raise RisError(f"{path}: not JSON: {error}; write it by ris bench --json > FILE") from error
    if not isinstance(value, dict) or not {"dataset", "stages", "peak_tflops"} <= value.keys():
        raise RisError(f"{path}: not a result of ris bench; write it by ris bench --json > FILE")
    return value


def _describe(value: Mapping[str, Any]) -> str:
    size = f"batches of {value['batch']}" if value["batch"] else "batches as configured"
    peaks = ", ".join(f"{peak:.3g} in {precision}" for precision, peak in value["peak_tflops"].items())
    where = f"{value['device']} ({value['machine']}), {value['threads']} threads, {value['workers']} workers"
    conditions = f"{value['dataset']}, {where}, {value['precision']}, {size}, torch {value['torch']}"
    return f"{conditions}\nmatrix products, TFLOP/s: {peaks}"


def _render(results: Sequence[Throughput], ratios: Mapping[str, float]) -> str:
    rows = [
        [
            row.stage, row.unit, row.precision, f"{row.per_second:.3g}",
            "–" if row.gflop is None else f"{row.gflop:.1f}", "–" if row.share is None else f"{row.share:.0%}",
            "–" if row.memory_mb is None else f"{row.memory_mb:,.0f}", f"{row.n_units:,}", f"{row.hours:.1f}",
            *([f"{ratios[row.stage]:.2f}" if row.stage in ratios else "–"] if ratios else []),
        ]
        for row in results
    ]  # fmt: skip
    titles = ["stage", "unit", "precision", "a second", "GFLOP each", "of peak", "MB", "whole run", "hours"]
    return draw_table([*titles, *(["times"] if ratios else [])], [rows], n_words=3)
