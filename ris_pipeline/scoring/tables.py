"""The paper's tables 1–7 in one form: rows, columns, and which of our scores belong in each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.find import find_latest, find_scores
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.scoring.paper import load_paper_tables
from ris_pipeline.scoring.rows import find_row_of_paper
from ris_pipeline.scoring.scores import read_score

UMD = "refcocog-umd"
_RN50 = {"clip": "RN50-quickgelu", "image_encoder": None}
ENCODERS: dict[str, dict[str, Any]] = {
    "ImageNet ResNet-50": {"image_encoder": "resnet50"},
    "ImageNet Swin-B": {"image_encoder": "swin_base_patch4_window7_224"},
    "CLIP ResNet-50": _RN50,
    "CLIP ResNet-101": {"clip": "RN101-quickgelu", "image_encoder": None},
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column; metric, data set and split are empty where it holds no score."""

    title: str
    metric: str = ""
    dataset: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: the paper's figures by column title, and which of our scores stand beside them.

    scored: their name in `ris score`, empty where the method is not here. settings: what the configuration of the
    network behind them must hold; empty for the latest, whatever it is.
    """

    name: str
    paper: Mapping[str, float]
    scored: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the paper's supplemental material."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]


def read_scores(runs: Path, row: TableRow, columns: Sequence[Column]) -> tuple[dict[str, float], list[str]]:
    """Return our scores of a row in percent by column title, and what is left out as of a part of its split only.

    Those that were never computed are left out too. A part has no place beside the paper's figures.
    """
    found, partial = {}, []
    for column in columns:
        artifact = _find_scores(runs, row, column)
        if artifact is None:
            continue
        score = read_score(artifact)
        if score.partial:
            share = f"{score.partial['sentences']:,} of {score.partial['expected']:,} sentences"
            partial.append(f"{row.name} on {column.dataset} {column.split} ({share})")
        elif column.metric in score.metrics:
            found[column.title] = score.metrics[column.metric].value
    return found, partial


def _find_scores(runs: Path, row: TableRow, column: Column) -> Artifact | None:
    if not (row.scored and column.dataset):
        return None
    if row.settings:
        return find_scores(runs, column.dataset, row.scored, column.split, row.settings)
    return find_latest(runs, column.dataset, "scores", scored=row.scored, split=column.split)


def build_table(number: int) -> Table:
    """Return the paper's table of that number, 1 to 7."""
    return (_pointit, _cost, _step1_encoders, _hidden, _lambda, _step2_encoders, _refinement)[number - 1]()


def _pointit() -> Table:
    table = load_paper_tables()["table1_pointit"]
    columns = tuple(Column(where, "pointit", *where.split("/")) for where in table["splits"])
    rows = (TableRow(name, row["PointIt"], _scored(name)) for name, row in table["methods"].items())
    return Table("Table 1: PointIt", columns, tuple(rows))


def _cost() -> Table:
    columns = (
        *(Column(title) for title in ("params", "macs", "ms")),
        *(Column(metric, metric.casefold(), "referit", "test") for metric in ("mIoU", "PointIt", "PointM")),
    )
    rows = (TableRow(name, row, _scored(name)) for name, row in load_paper_tables()["table2_cost_referit_test"].items())
    return Table("Table 2: parameters (M), MACs (G), ms on a GTX 1080 Ti; ReferIt test", columns, tuple(rows))


def _step1_encoders() -> Table:
    columns = _train_and_val("mIoU", "PointIt")
    rows = [
        TableRow(name, _flatten(row), "step1", {**ENCODERS[name], "hidden": 1024, "weight_cls": 5.0})
        for name, row in load_paper_tables()["table3_step1_encoders_refcocog_umd"].items()
    ]
    return Table("Table 3: encoders of Step-1, RefCOCOg (UMD)", columns, tuple(rows))


def _hidden() -> Table:
    figures = load_paper_tables()["table4_hidden_dim_refcocog_umd_train"]
    rows = (TableRow(n, row, "step1", {**_RN50, "hidden": int(n), "weight_cls": 5.0}) for n, row in figures.items())
    return Table(
        "Table 4: channels C_d of Step-1, RefCOCOg (UMD) train", _train("mIoU", "PointIt", "PointM"), tuple(rows)
    )


def _lambda() -> Table:
    figures = load_paper_tables()["table5_lambda_refcocog_umd_train"]
    rows = (TableRow(n, row, "step1", {**_RN50, "hidden": 1024, "weight_cls": float(n)}) for n, row in figures.items())
    return Table("Table 5: λ of Step-1, RefCOCOg (UMD) train", _train("mIoU", "PointIt", "PointM"), tuple(rows))


def _step2_encoders() -> Table:
    columns = (*_train_and_val("mIoU", "PointIt", "PointM"), Column("flops_g"), Column("ms"))
    rows = [
        TableRow(name, _flatten(row), "step2", ENCODERS[name])
        for name, row in load_paper_tables()["table6_step2_encoders_refcocog_umd"].items()
    ]
    return Table("Table 6: encoders of Step-2, RefCOCOg (UMD)", columns, tuple(rows))


def _refinement() -> Table:
    figures = load_paper_tables()["table7_refinement_train_mIoU"]
    columns = tuple(Column(dataset, "miou", dataset, "train") for dataset in figures["PRMS"])
    rows = (TableRow(name, row, _scored(name)) for name, row in figures.items())
    return Table("Table 7: mIoU of the selected maps and of the refined pseudo-labels, train", columns, tuple(rows))


def _scored(method: str) -> str:
    row = find_row_of_paper(method)
    return row.name if row else ""


def _train(*metrics: str) -> tuple[Column, ...]:
    return tuple(Column(metric, metric.casefold(), UMD, "train") for metric in metrics)


def _train_and_val(*metrics: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"{split} {metric}", metric.casefold(), UMD, split) for split in ("train", "val") for metric in metrics
    )


def _flatten(row: Mapping[str, Any]) -> dict[str, float]:
    """Return {"train mIoU": …} of {"train": {"mIoU": …}}."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        flat |= (
            {f"{key} {metric}": score for metric, score in value.items()} if isinstance(value, dict) else {key: value}
        )
    return flat
