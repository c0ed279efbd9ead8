"""An experiment's file: what a table shows, and for each row the settings that differ.

    title = "λ of Step-1"
    columns = ["refcocog-umd/train miou", "refcocog-umd/train pointit"]

    [[rows]]
    name = "1"
    scored = "step1"
    set = { step1 = { weight_cls = 1.0 } }
    paper = [26.92, 63.93]

A column is "<data set>/<split> <metric>"; or "parameters" (in millions), "gmac" (10⁹ multiply-accumulates for one image
and one sentence) or "hours" (of all stages behind the row, on the machine that ran them), which cost and do not score.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import field, replace
from importlib import resources
from math import isnan, nan
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from ris_pipeline.artifacts.layout import TRAIN_SPLIT
from ris_pipeline.config import explain_invalid
from ris_pipeline.errors import RisError, did_you_mean
from ris_pipeline.scoring.metrics import METRICS
from ris_pipeline.scoring.rows import Tier, find_row, list_rows

FOLDERS = ("shapes", "paper")  # of the shipped files: of the embedded data sets, and of the paper's
COSTS = ("parameters", "gmac", "hours")
_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Entry:
    """A row of an experiment."""

    name: str
    scored: str  # its name in `ris score`
    set: dict[str, dict[str, Any]] = field(default_factory=dict)  # {stage or method: settings}
    paper: list[float] = field(default_factory=list)  # the expected figure of each column, nan where there is none
    tier: Tier | None = None  # supervision beside CLIP's own; None: that of what is scored
    together: bool = False  # whether several sentences of an object are used together, in training or at test time

    @property
    def supervision(self) -> Tier:
        """What the row learns from beside CLIP's own."""
        return self.tier or find_row(self.scored).tier


@dataclass(frozen=True, config=_STRICT)
class Experiment:
    """A table: its columns, and its rows with the settings of each."""

    title: str
    columns: list[str]
    rows: list[Entry]
    source: str = ""  # the paper's table or figure that it is made after, where the figures of `paper` stand
    seeds: list[int] = field(default_factory=lambda: [0])
    axis: str = ""  # what the rows' names count, where they are the points of a curve
    cost: str = ""  # what making it all took: hours, device, date; or why that is not known
    name: str = ""  # of the file

    @property
    def datasets(self) -> list[str]:
        """The data sets of the columns, in their order."""
        return list(dict.fromkeys(where_of(column)[0] for column in self.columns if column not in COSTS))

    def splits_of(self, dataset: str) -> list[str]:
        """Return the splits of a data set on which its rows are scored."""
        found = (where_of(column) for column in self.columns if column not in COSTS)
        return list(dict.fromkeys(split for name, split, _ in found if name == dataset))

    def expected(self, entry: Entry, column: str) -> float | None:
        """Return the paper's figure, None where it has none."""
        if not entry.paper:
            return None
        figure = entry.paper[self.columns.index(column)]
        return None if isnan(figure) else figure

    def show(self, metrics: Sequence[str]) -> Experiment:
        """Return the experiment with these metrics of each of its splits, and the paper's figures for those it has."""
        columns = dict[str, None]()
        for column in self.columns:
            if column in COSTS:
                columns[column] = None
            else:
                where = column.split(" ")[0]
                columns |= dict.fromkeys(f"{where} {metric}" for metric in metrics)
        rows = []
        for entry in self.rows:
            known = dict(zip(self.columns, entry.paper, strict=False))
            rows.append(replace(entry, paper=[known.get(column, nan) for column in columns]))
        return replace(self, columns=list(columns), rows=rows)


def where_of(column: str) -> tuple[str, str, str]:
    """Return data set, split and metric of a column that scores; ValueError for another form."""
    where, metric = column.split(" ")
    dataset, split = where.split("/")
    return dataset, split, metric


def list_experiments() -> list[str]:
    """Return the names of the shipped experiments."""
    root = resources.files("ris_pipeline") / "experiments"
    names = [file.name for folder in FOLDERS for file in (root / folder).iterdir()]
    return sorted({name.removesuffix(".toml") for name in names if name.endswith(".toml")})


def load_experiment(
    name: str, dataset: str | None, splits: Sequence[str] = (), *, generated: bool = False
) -> Experiment:
    """Return the experiment of a file, or the shipped one of that name (a number: of that table) for a data set.

    `dataset`: also one of FOLDERS, whose file is returned; None: that of the embedded data sets. `splits`: the data
    set's; one that no shipped file knows gets the paper's rows on them, or, if it is `generated`, those of the embedded
    data sets, whose networks fit its pictures. Raises RisError for a name that is not there, a data set that an own
    file has no column of, and a file that does not say what it should.
    """
    if name.endswith(".toml"):
        found = [_parse(Path(name), _read(Path(name)))]
    else:
        name = f"table{name}" if name.isdigit() else name
        if name not in list_experiments():
            near = did_you_mean(name, list_experiments())
            raise RisError(f"no experiment {name!r}, and no path of a .toml file{near}")
        root = resources.files("ris_pipeline") / "experiments"
        files = [root / folder / f"{name}.toml" for folder in FOLDERS if dataset not in FOLDERS or folder == dataset]
        found = [_parse(Path(str(file)), file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    if dataset is None or (dataset in FOLDERS and found):
        return found[0]
    for experiment in found:
        if dataset in experiment.datasets:
            return experiment
    if splits and not name.endswith(".toml"):
        return _adapt(found[0 if generated else -1], dataset, splits)
    raise RisError(f"{name}: has no column of {dataset}; its data sets: {', '.join(found[0].datasets)}")


def _adapt(experiment: Experiment, dataset: str, splits: Sequence[str]) -> Experiment:
    """Return the rows of an experiment on another data set, without the paper's figures and what they have taken.

    One that looks at the train split alone looks at it here; any other at all splits but train.
    """
    scored = [where_of(column) for column in experiment.columns if column not in COSTS]
    metrics = dict.fromkeys(metric for _, _, metric in scored)
    is_of_train = {split for _, split, _ in scored} == {TRAIN_SPLIT}
    chosen = [split for split in splits if (split == TRAIN_SPLIT) == is_of_train]
    columns = [f"{dataset}/{split} {metric}" for split in chosen for metric in metrics]
    costs = [column for column in experiment.columns if column in COSTS]
    rows = [replace(entry, paper=[]) for entry in experiment.rows]
    head, _, what = experiment.title.partition(": ")
    title = f"{head.partition(' on ')[0]} on {dataset}: {what}"
    return replace(experiment, title=title, columns=[*costs, *columns], rows=rows, cost="")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RisError(f"{path}: cannot read the experiment: {error}") from error


def _parse(path: Path, text: str) -> Experiment:
    try:
        tables = tomllib.loads(text)
        rows = [Entry(**row) for row in tables.pop("rows", [])]
        experiment = Experiment(**tables, rows=rows, name=path.stem)
    except ValidationError as error:
        kind = Entry if error.title == Entry.__name__ else Experiment
        raise RisError(f"{path}: {explain_invalid(error, kind)}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise RisError(f"{path}: not an experiment: {error}") from error
    for line in _find_faults(experiment):
        raise RisError(f"{path}: {line}")
    return experiment


def _find_faults(experiment: Experiment) -> list[str]:
    faults = []
    for column in experiment.columns:
        if column in COSTS:
            continue
        try:
            metric = where_of(column)[2]
        except ValueError:
            faults.append(f"column {column!r}: write '<data set>/<split> <metric>', or one of {', '.join(COSTS)}")
            continue
        if metric not in METRICS:
            faults.append(f"column {column!r}: no metric {metric!r}{did_you_mean(metric, METRICS)}")
    names = [entry.name for entry in experiment.rows]
    faults += [f"row {name!r} is there twice" for name in _repeated(names)]
    known = [row.name for row in list_rows()]
    for entry in experiment.rows:
        if entry.scored not in known:
            faults.append(
                f"row {entry.name!r}: nothing is scored as {entry.scored!r}{did_you_mean(entry.scored, known)}"
            )
        if entry.paper and len(entry.paper) != len(experiment.columns):
            faults.append(f"row {entry.name!r}: {len(entry.paper)} figures for {len(experiment.columns)} columns")
    return faults or ([] if names else ["no [[rows]]"])


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]
