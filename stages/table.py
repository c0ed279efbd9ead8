"""`ris table`: an experiment as a table, what was measured beside what the paper has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stages.console import align, emit
from stages.context import METRIC_WORDS, DataRoot, Output, Runs, check_metric
from stages.experiment import Config, Dataset, Name, Seeds, Set, open_experiment


def run(
    output: Output,
    name: Name,
    dataset: Dataset = None,
    seeds: Seeds = None,
    form: Annotated[
        Literal["text", "markdown", "latex", "csv"], typer.Option("--format", help="LaTeX needs the package booktabs.")
    ] = "text",
    metric: Annotated[
        str | None,
        typer.Option(
            metavar=f"<{'|'.join(METRIC_WORDS)}>",
            callback=lambda word: word and check_metric(word),
            help="What to show of each split; left out: the experiment's own.",
        ),
    ] = None,
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
    from ris_pipeline.scoring.metrics import select_metrics

    places = {"data_root": data_root, "runs": runs, "config": config, "set": set}
    experiment, points = open_experiment(name, dataset, seeds, Output(quiet=True), places)
    table = build_table(experiment, points, select_metrics(metric) if metric else ())
    text = render(table, form, lambda lines: align(lines, n_words=1))
    if table.n_missing and form == "text":
        text += f"\n{table.n_missing} scores are not made yet; run: ris experiment {name}"
    emit(output, text, to_json(table))
