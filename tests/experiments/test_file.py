"""The shipped experiments against the paper's figures, and what a wrong file is told."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ris_pipeline.chain.context import open_context
from ris_pipeline.config import CONFIGS
from ris_pipeline.errors import RisError
from ris_pipeline.experiments.file import COSTS, FOLDERS, list_experiments, load_experiment
from ris_pipeline.methods import METHODS
from ris_pipeline.scoring.paper import load_paper_tables

ROOT = Path(__file__).parents[2]
TABLES = [f"table{n}" for n in range(1, 8)]
FIGURES = ["figure1", "figure2"]
METRIC = {"miou": "mIoU", "pointit": "PointIt", "pointm": "PointM"}
COST = {"table2": {"parameters": "params", "gmac": "macs"}, "table6": {"gmac": "flops_g"}}


def find_figure(name: str, row: str, column: str) -> float:
    """The figure where paper_tables.json has it, whose tables differ in form."""
    key = next(key for key in load_paper_tables() if key.startswith(f"{name}_"))
    table = load_paper_tables()[key]
    if column in COSTS:
        return table[row][COST[name][column]]
    where, metric = column.split()
    dataset, split = where.split("/")
    if name == "table1":
        return table["methods"][row]["PointIt"][where]
    if name == "table7":
        return table[row][dataset]
    return table[row].get(split, table[row])[METRIC[metric]]


@pytest.mark.parametrize("name", TABLES)
def test_figures_of_the_paper(name):
    experiment = load_experiment(name, "paper")
    figures = {
        (entry.name, column): experiment.expected(entry, column)
        for entry in experiment.rows
        for column in experiment.columns
        if not entry.name.endswith("no training")  # which the paper does not have
    }
    assert figures == {(row, column): find_figure(name, row, column) for row, column in figures}


@pytest.mark.parametrize(
    ("name", "row", "column", "figure"),
    [
        ("table1", "Step-2", "refcocog-google/val pointit", 67.61),
        ("table2", "GbS", "referit/test pointm", 30.3),
        ("table3", "ImageNet Swin-B", "refcocog-umd/val pointit", 64.44),
        ("table4", "2048", "refcocog-umd/train miou", 27.65),
        ("table5", "7", "refcocog-umd/train pointm", 53.17),
        ("table6", "CLIP ResNet-50", "gmac", 21.63),
        ("table7", "PRMS + R", "refcoco+/train miou", 30.86),
    ],
)
def test_figures_read_off_the_paper_by_hand(name, row, column, figure):
    experiment = load_experiment(name, "paper")
    (entry,) = (entry for entry in experiment.rows if entry.name == row)
    assert experiment.expected(entry, column) == figure


def test_there_is_a_file_for_each_table_and_figure_and_kind_of_data():
    assert list_experiments() == sorted([*TABLES, *FIGURES])
    assert {load_experiment(name, None).datasets[0] for name in (*TABLES, *FIGURES)} == {"shapes"}
    for name in FIGURES:
        rows = [[entry.scored for entry in load_experiment(name, folder).rows] for folder in FOLDERS]
        assert rows[0] == rows[1]
    assert load_experiment("5", "refcocog-umd") == load_experiment("table5", "paper")


@pytest.mark.parametrize("name", [*TABLES, *FIGURES])
@pytest.mark.parametrize("folder", FOLDERS)
def test_each_says_what_of_the_paper_it_is_and_what_it_costs(name, folder):
    experiment = load_experiment(name, folder)
    kind, number = name[:-1].capitalize(), name[-1]
    assert experiment.source.endswith(f"{kind} {number}")
    assert re.search(r"\d hours|^not measured: .|^nothing beside Table \d", experiment.cost)


def test_make_tables_makes_and_shows_each_of_them():
    out = subprocess.run(["make", "-n", "tables"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for number in range(1, 8):
        assert re.search(rf"ris experiment {number} .*\n\S*ris table {number} ", out), number
    for name in FIGURES:
        assert re.search(rf"ris experiment {name} .*\n\S*ris figure qualitative {name} --out", out), name
    assert re.findall(r"ris figure sweep (\d) ", out) == ["4", "5"]


def test_a_failing_row_stops_neither_its_table_nor_the_others(tmp_path):
    ready, ris, log = (tmp_path / name for name in ("ready", "ris", "log"))
    ready.touch()
    ris.write_text(f'#!/bin/sh\necho "$*" >> {log}\ntest "$1 $2" != "experiment 2"\n')
    ris.chmod(0o755)
    words = ["make", "tables", f"RIS={ris}", f"READY={ready}", f"RUNS={tmp_path}"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode != 0
    lines = log.read_text().splitlines()
    shown = [" ".join(line.split()[:2]) for line in lines if line.startswith("table")]
    assert shown == [f"table {number}" for number in range(1, 8)]
    assert sum(line.startswith("figure") for line in lines) == 4
    log.unlink()
    assert (
        subprocess.run([*words[:1], "table-3", *words[2:]], cwd=ROOT, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("name", [*TABLES, *FIGURES])
@pytest.mark.parametrize("folder", ["shapes", "paper"])
def test_every_setting_is_one_of_its_stage(name, folder):
    experiment = load_experiment(name, folder)
    methods = {method.table: method.config for method in METHODS.values()}
    for dataset in experiment.datasets:
        context = open_context(dataset)
        for entry in experiment.rows:
            for table, settings in entry.set.items():
                resolved = context.resolve({**CONFIGS, **methods}[table], table, settings)
                assert all(getattr(resolved, key) == value for key, value in settings.items())


GOOD = """
title = "two rates"
columns = ["shapes/val miou", "hours"]
[[rows]]
name = "a"
scored = "step1"
set = { step1 = { lr = 1e-4 } }
paper = [nan, 2.0]
"""


def test_an_own_file(tmp_path: Path):
    path = tmp_path / "own.toml"
    path.write_text(GOOD)
    experiment = load_experiment(str(path), "shapes")
    (entry,) = experiment.rows
    assert (experiment.name, experiment.seeds, experiment.splits_of("shapes")) == ("own", [0], ["val"])
    assert entry.set == {"step1": {"lr": 1e-4}}
    assert [experiment.expected(entry, column) for column in experiment.columns] == [None, 2.0]


def test_other_metrics_than_the_files_own_keep_the_papers_figures():
    shown = load_experiment("table5", "paper").show(["oiou", "pointm", "prec@0.9"])
    assert shown.columns == ["refcocog-umd/train oiou", "refcocog-umd/train pointm", "refcocog-umd/train prec@0.9"]
    (entry,) = (entry for entry in shown.rows if entry.name == "7")
    assert [shown.expected(entry, column) for column in shown.columns] == [None, 53.17, None]
    costs = load_experiment("table2", "paper").show(["oiou"])
    assert costs.columns == ["parameters", "gmac", "referit/test oiou"]
    assert costs.expected(costs.rows[0], "gmac") == load_experiment("table2", "paper").expected(costs.rows[0], "gmac")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("scored", "score", "'score'"),
        ('"step1"', '"step3"', "did you mean 'step"),
        ("val miou", "val mio", "did you mean 'miou'"),
        ("shapes/val miou", "shapes miou", "write '<data set>/<split> <metric>'"),
        ("[nan, 2.0]", "[2.0]", "1 figures for 2 columns"),
        ("paper = ", '\n[[rows]]\nname = "a"\nscored = "step1"\npaper = ', "'a' is there twice"),
        ("title = ", "titel = ", "titel"),
        ("[[rows]]", "[[row]]", "row"),
        ("= [", "= ", "not an experiment"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(tmp_path, old, new, word):
    path = tmp_path / "own.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(RisError, match=r"own\.toml") as error:
        load_experiment(str(path), None)
    assert word in str(error.value)


def test_an_unknown_name_and_an_unknown_data_set():
    with pytest.raises(RisError, match="did you mean 'table7'"):
        load_experiment("tabl7", None)
    with pytest.raises(RisError, match="its data sets: shapes"):
        load_experiment("table5", "referit")


def test_a_data_set_that_no_file_knows_gets_the_papers_rows():
    methods = load_experiment("table1", "mine", ("train", "val", "test"))
    assert methods.columns == ["mine/val pointit", "mine/test pointit"]
    assert [entry.name for entry in methods.rows] == [entry.name for entry in load_experiment("1", "paper").rows]
    assert all(methods.expected(entry, column) is None for entry in methods.rows for column in methods.columns)
    assert load_experiment("table5", "mine", ("train", "val")).columns == [
        "mine/train miou", "mine/train pointit", "mine/train pointm",
    ]  # fmt: skip
    assert load_experiment("table2", "mine", ("test",)).columns[:3] == ["parameters", "gmac", "mine/test miou"]


def test_what_is_not_there():
    with pytest.raises(RisError, match=r"nonesuch\.toml"):
        load_experiment("nonesuch.toml", None)


def test_the_supervision_is_that_of_what_is_scored_unless_the_file_says_more(tmp_path):
    rows = {"step1": "", "step2-oracle": "", "pseudo-proposals": "", "step2": 'tier = "boxes or masks"'}
    text = "".join(f'[[rows]]\nname = "{name}"\nscored = "{name}"\n{more}\n' for name, more in rows.items())
    (tmp_path / "own.toml").write_text(f'title = "t"\ncolumns = ["shapes/val miou"]\n{text}')
    experiment = load_experiment(str(tmp_path / "own.toml"), None)
    assert [entry.supervision for entry in experiment.rows] == [
        "text", "boxes or masks", "class-agnostic masks", "boxes or masks",
    ]  # fmt: skip
