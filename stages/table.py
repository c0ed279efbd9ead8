"""`ris table`: an experiment as a table, what was measured beside what the paper has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stages.console import align, emit
from stages.context import DataRoot, Output, Runs
from stages.experiment import Config, Dataset, Name, Seeds, Set, open_experiment


def run(
    output: Output,
    name: Name,
    dataset: Dataset = None,
    seeds: Seeds = None,
    form: Annotated[
        Literal["text", "markdown", "latex", "csv"], typer.Option("--format", help="LaTeX needs the package booktabs.")
    ] = "text",
    data_root: DataRoot = Path("data"),
    runs: Runs = Path("runs"),
    config: Config = None,
    set: Set = None,
) -> None:
    """Print the table of an experiment.

    Reads:    the experiment's file; scores below runs/
    Writes:   stdout: the table
    Example:  ris table 1 --dataset refcoco --format latex
    """
    from ris_pipeline.experiments.table import build_table, render, to_json

    places = {"data_root": data_root, "runs": runs, "config": config, "set": set}
    experiment, points = open_experiment(name, dataset, seeds, Output(quiet=True), places)
    table = build_table(experiment, points)
    text = render(table, form, lambda lines: align(lines, n_words=1))
    if table.n_missing and form == "text":
        text += f"\n{table.n_missing} cells are not made yet; run: ris experiment {name}"
    emit(output, text, to_json(table))
