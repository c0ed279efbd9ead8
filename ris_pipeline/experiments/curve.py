"""The curve of a setting: an experiment whose rows are the points of an axis, beside the paper's curve."""

from __future__ import annotations

from matplotlib.figure import Figure

from ris_pipeline.errors import RisError
from ris_pipeline.experiments.file import COSTS
from ris_pipeline.experiments.table import Table
from ris_pipeline.report.charts import INK, MUTED


def draw_sweep(table: Table) -> Figure:
    """Draw a panel for each column that scores: the measured values with their spread, and the paper's, dashed.

    A value of a part of the split is a hollow point.

    Raises RisError for an experiment without an axis, and where nothing of it has been made.
    """
    experiment = table.experiment
    if not experiment.axis:
        raise RisError(f"{experiment.name}: its rows are no points of a curve; a file says of what by its key `axis`")
    columns = [(k, column) for k, column in enumerate(table.columns) if column not in COSTS]
    if not any(table.cells[entry.name][k] for k, _ in columns for entry in experiment.rows):
        raise RisError(f"{experiment.name}: nothing is made yet; run: ris experiment {experiment.name}")
    places = range(len(experiment.rows))
    figure = Figure(figsize=(3.2 * len(columns), 2.6), facecolor="white", layout="constrained")
    for axes, (k, column) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        cells = {place: table.cells[entry.name][k] for place, entry in enumerate(experiment.rows)}
        made = {place: cell for place, cell in cells.items() if cell is not None}
        axes.errorbar(
            list(made), [cell.value for cell in made.values()], [cell.spread or 0.0 for cell in made.values()],
            color=INK, marker="o", markersize=3, linewidth=1.2, capsize=2, label="here",
        )  # fmt: skip
        partial = {place: cell.value for place, cell in made.items() if cell.partial}
        if partial:
            axes.plot(
                list(partial), list(partial.values()), color=INK, marker="o", markersize=4, markerfacecolor="white",
                linestyle="none", label="of a part of the split", zorder=3,
            )  # fmt: skip
        paper = {place: experiment.expected(entry, column) for place, entry in enumerate(experiment.rows)}
        known = {place: figure for place, figure in paper.items() if figure is not None}
        if known:
            axes.plot(list(known), list(known.values()), color=MUTED, linestyle="--", linewidth=1.2, label="paper")
        if known or partial:
            axes.legend(frameon=False, fontsize=8)
        axes.set_xticks(list(places), [entry.name for entry in experiment.rows])
        axes.set_xlabel(experiment.axis, fontsize=8)
        axes.set_title(column, fontsize=9)
        axes.tick_params(labelsize=7)
    return figure
