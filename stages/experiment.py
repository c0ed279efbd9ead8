"""`ris experiment`: all stages behind the rows of a table, each artifact once, on one machine or on a cluster."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ris_pipeline.process.console import Console
from ris_pipeline.process.workers import WORKERS
from stages.console import emit
from stages.context import DataRoot, Device, DryRun, Output, Places, Precision, Runs, Workers, open_context

if TYPE_CHECKING:
    from ris_pipeline.chain.context import Context
    from ris_pipeline.experiments.file import Experiment
    from ris_pipeline.experiments.run import Point

Name = Annotated[str, typer.Argument(metavar="NAME", help="table1 to table7, a number, or a path to a .toml file.")]
Dataset = Annotated[
    str | None,
    typer.Option(help="A card's name or file; paper: all of the paper's; left out: shapes, or the file's own."),
]
Seeds = Annotated[str | None, typer.Option(metavar="0,1,…", help="Seeds in place of the file's.")]
Config = Annotated[Path | None, typer.Option(help="TOML file with one table per stage.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")]


def run(
    output: Output,
    name: Name,
    dataset: Dataset = None,
    seeds: Seeds = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Processes, each with its share of the cores.")] = 1,
    only: Annotated[int | None, typer.Option(min=0, metavar="K", help="Make the K-th group of rows only.")] = None,
    slurm: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make nothing; write an sbatch array script over what is missing."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Make it again in a scratch folder and compare.")] = False,
    data_root: DataRoot = Path("data"),
    runs: Runs = Path("runs"),
    config: Config = None,
    set: Set = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = WORKERS,
    dry_run: DryRun = False,
) -> None:
    """Make what a table of the paper, or one of your own, is made of.

    Reads:    the experiment's file; images, sentences, boxes, masks
    Writes:   runs/<dataset>/: the artifacts of all stages behind its rows
    Example:  ris experiment table5 --dataset shapes --seeds 0,1,2
    """
    from ris_pipeline.errors import RisError
    from ris_pipeline.experiments.jobs import run_jobs, write_slurm
    from ris_pipeline.experiments.run import explain, group_points, make_points, read

    places = {"data_root": data_root, "runs": runs, "config": config, "set": set}
    options: dict[str, Any] = {"device": device, "precision": precision, "workers": workers}
    experiment, points = open_experiment(name, dataset, seeds, output, places, **options)
    groups = group_points(points)
    if only is not None and only >= len(groups):
        raise RisError(f"--only {only}: {experiment.name} has {len(groups)} groups, numbered from 0")
    chosen = groups if only is None else groups[only : only + 1]
    words = _same_words(name, {"dataset": dataset, "seeds": seeds, **places, **options})
    if check:
        _check(output, experiment, points)
    elif slurm is not None:
        missing = [k for k, group in enumerate(groups) if any(len(read(p)) < len(p.splits) for p in group)]
        if missing:
            write_slurm(slurm, experiment.name, words, missing, runs / "experiments")
        text = (
            f"{slurm}: {len(missing)} of {len(groups)} groups; run: sbatch {slurm}"
            if missing
            else "all is there already"
        )
        emit(output, text, {"groups": missing})
    elif dry_run:
        if experiment.cost:
            Console(quiet=output.quiet).say(f"cost of {experiment.name}: {experiment.cost}")
        for group in chosen:
            for point in group:
                n, why = len(read(point)), explain(point)
                text = f"{point.title}: {n} of {len(point.splits)} splits scored"
                emit(output, f"{text}; {why}" if why else text, {"point": point.title, "n": n, "why": why})
    elif jobs > 1 and only is None:
        failed = run_jobs(words, len(groups), jobs, runs / "experiments" / experiment.name)
        if failed:
            raise RisError(f"{failed} of {len(groups)} groups ended with an error; logs: {runs / 'experiments'}")
    else:
        failed = 0
        for group in chosen:
            for point, state in make_points(group):
                emit(output, f"{point.title}: {state}", {"point": point.title, "state": state})
                failed += state.startswith("failed")
        if failed:
            raise RisError(f"{failed} rows failed, as said above; the same command makes what is missing")


def open_experiment(
    name: str, dataset: str | None, seeds: str | None, output: Output, places: dict[str, Any], **options: Any
) -> tuple[Experiment, list[Point]]:
    """Return the experiment of a name or file and its points, of one data set or of all its own."""
    from ris_pipeline.datasets.card import load_card
    from ris_pipeline.errors import RisError
    from ris_pipeline.experiments.file import FOLDERS, load_experiment
    from ris_pipeline.experiments.run import list_points

    chosen = None if dataset in (None, *FOLDERS) else load_card(str(dataset))
    card = chosen.name if chosen else None
    experiment = load_experiment(
        name, card or dataset, tuple(chosen.splits) if chosen else (), generated=bool(chosen and chosen.generate)
    )

    def open_dataset(own: str) -> Context:
        return open_context(Places(dataset=str(dataset) if card else own, **places), output=output, **options)

    try:
        numbers = experiment.seeds if seeds is None else [int(word) for word in seeds.split(",")]
    except ValueError as error:
        raise RisError(f"--seeds {seeds}: write numbers with commas between them, such as 0,1,2") from error
    datasets = experiment.datasets if card is None else [card]
    if name.endswith(".toml") and dataset in datasets:  # "shapes": of an own file the card, no folder of shipped files
        datasets = [dataset]
    return experiment, list_points(experiment, open_dataset, datasets, numbers)


def _same_words(name: str, options: dict[str, Any]) -> list[str]:
    """Return the command as it is to be called again for one of the groups."""
    words = [sys.executable, "-m", "stages.cli", "experiment", name]
    for option, value in options.items():
        for single in value if isinstance(value, list) else [value]:
            if single is not None:
                words += [f"--{option.replace('_', '-')}", str(single)]
    return words


def _check(output: Output, experiment: Experiment, points: list[Point]) -> None:
    """Make the points again in a scratch folder, and compare. RisError where a figure is outside of its interval."""
    from dataclasses import replace

    from ris_pipeline.errors import RisError
    from ris_pipeline.experiments.run import make_points
    from ris_pipeline.experiments.table import build_table, compare

    before = build_table(experiment, points)
    runs = points[0].context.runs
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="check-", dir=runs) as scratch:
        again = [replace(point, context=point.context.vary(runs=Path(scratch))) for point in points]
        for point, state in make_points(again):
            points[0].context.say(f"{point.title}: {state}")
        found = compare(before, build_table(experiment, again))
    lines = [
        f"{row}, {column}: {old:.2f} → {new:.2f}, {'within' if abs(new - old) <= band else 'OUTSIDE'} ±{band:.2f}"
        for row, column, old, new, band in found
    ]
    values = [dict(zip(("row", "column", "before", "again", "band"), line, strict=True)) for line in found]
    emit(output, "\n".join(lines) or "nothing made yet to compare with", values)
    if n_outside := sum("OUTSIDE" in line for line in lines):
        raise RisError(f"{n_outside} of {len(lines)} figures came out outside of their interval, as said above")
