"""The figures that the TRIS paper (ICCV 2023, supplemental material) prints, to hold results against."""

import json
from functools import cache
from importlib import resources
from typing import Any

# The same refs from the Hugging Face hub.
_SAME_REFS = {"refcoco-hf": "refcoco", "refcoco+-hf": "refcoco+", "refcocog-hf": "refcocog-umd"}


@cache
def load_paper_tables() -> dict[str, Any]:
    """Return the paper's tables 1–7 as they stand in `paper_tables.json`; do not change the dict."""
    text = resources.files("ris_pipeline").joinpath("paper_tables.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def _fold(name: str) -> str:
    """Return a name without case and punctuation: "Step-1" and "step1" are one."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


@cache
def _figures() -> dict[tuple[str, str, str], float]:
    """Return {("<dataset>/<split>", stage, metric): percent}; of a figure printed twice, the first."""
    tables = load_paper_tables()
    figures: dict[tuple[str, str, str], float] = {}

    def add(where: str, stage: str, scores: dict[str, Any]) -> None:
        for metric, value in scores.items():
            figures.setdefault((where, _fold(stage), _fold(metric)), float(value))

    for method, row in tables["table1_pointit"]["methods"].items():
        for where, value in row["PointIt"].items():
            add(where, method, {"PointIt": value})
    for method, row in tables["table2_cost_referit_test"].items():
        add("referit/test", method, {metric: row[metric] for metric in ("mIoU", "PointIt", "PointM")})
    for table, stage in (
        ("table3_step1_encoders_refcocog_umd", "Step-1"),
        ("table6_step2_encoders_refcocog_umd", "Step-2"),
    ):
        for split in ("train", "val"):
            add(f"refcocog-umd/{split}", stage, tables[table]["CLIP ResNet-50"][split])
    add("refcocog-umd/train", "Step-1", tables["table4_hidden_dim_refcocog_umd_train"]["1024"])
    for stage, row in tables["table7_refinement_train_mIoU"].items():
        for dataset, value in row.items():
            add(f"{dataset}/train", stage, {"mIoU": value})
    return figures


def paper_figure(dataset: str, split: str, stage: str, metric: str) -> float | None:
    """Return the paper's score in percent, None where it prints none.

    `dataset`: "referit", "refcoco", "refcoco+", "refcocog-google", "refcocog-umd", or as the hub has it, "refcoco-hf".
    `stage`: "step1", "step2", "PRMS", "PRMS + R" or a method of Table 1; its case and punctuation, as `metric`'s, are
    ignored. WWbL's PointIt on ReferIt is Table 1's (57.40), not Table 2's (56.09).
    """
    dataset = _SAME_REFS.get(dataset, dataset)
    return _figures().get((f"{dataset}/{split}", _fold(stage), _fold(metric)))
