"""The tables' cells against figures read off the paper by hand, and our scores in them."""

import json

import pytest

from calls import Options, call
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.scoring.tables import ENCODERS, build_table
from stages import table


@pytest.mark.parametrize(
    ("number", "row", "column", "figure", "where"),
    [
        (1, "Step-1", "referit/test", 72.56, ("pointit", "referit", "test")),
        (1, "AMR", "refcocog-umd/test", 36.99, ("pointit", "refcocog-umd", "test")),
        (1, "Step-2", "refcocog-google/val", 67.61, ("pointit", "refcocog-google", "val")),
        (2, "Step-2", "params", 142.09, ("", "", "")),
        (2, "GbS", "PointM", 30.3, ("pointm", "referit", "test")),
        (3, "ImageNet Swin-B", "val PointIt", 64.44, ("pointit", "refcocog-umd", "val")),
        (4, "2048", "mIoU", 27.65, ("miou", "refcocog-umd", "train")),
        (5, "7", "PointM", 53.17, ("pointm", "refcocog-umd", "train")),
        (6, "ImageNet Swin-B", "val PointM", 58.7, ("pointm", "refcocog-umd", "val")),
        (6, "CLIP ResNet-50", "flops_g", 21.63, ("", "", "")),
        (7, "PRMS + R", "refcoco+", 30.86, ("miou", "refcoco+", "train")),
    ],
)
def test_cells(number, row, column, figure, where):
    built = build_table(number)
    (found,) = (found for found in built.rows if found.name == row)
    (two,) = (two for two in built.columns if two.title == column)
    assert found.paper[column] == figure
    assert (two.metric, two.dataset, two.split) == where


@pytest.mark.parametrize(
    ("number", "shape"), [(1, (8, 10)), (2, (5, 6)), (3, (4, 4)), (4, (5, 3)), (5, (10, 3)), (6, (2, 8)), (7, (2, 5))]
)
def test_every_cell_is_filled(number, shape):
    built = build_table(number)
    assert (len(built.rows), len(built.columns)) == shape
    for row in built.rows:
        assert {column.title for column in built.columns} <= row.paper.keys()


def make(options, dataset, stage, *inputs, flags=None, metrics=None, **configuration) -> Artifact:
    named = {artifact.name: artifact.digest for artifact in inputs}
    request = Request(options.runs, dataset, stage, configuration, named, flags or {})
    with publish(request) as work:
        values = {
            name: {"value": value, "ci_low": 0, "ci_high": 0, "n_refs": 1, "n_expressions": 1}
            for name, value in (metrics or {}).items()
        }
        scores = {"dataset": dataset, **(flags or {}), "sentences": 1, "metrics": values}
        (work.path / "scores.json").write_text(json.dumps(scores))
    artifact = find(request)
    assert artifact is not None
    return artifact


@pytest.fixture
def options(tmp_path):
    return Options(runs=tmp_path / "runs", json=True)


def rows(options, capsys, number):
    call(table.run, options, runs=options.runs, number=number)
    return {row["row"]: row["here"] for row in json.loads(capsys.readouterr().out)["rows"]}


def test_latest_scores_stand_beside_the_paper(options, capsys):
    assert not any(rows(options, capsys, 1).values())
    make(
        options, "refcoco", "scores", flags={"scored": "step1", "split": "testA"}, metrics={"pointit": 70.0, "miou": 3}
    )
    make(options, "refcoco", "scores", flags={"scored": "step1", "split": "testA"}, metrics={"pointit": 71.0}, again=1)
    make(options, "refcoco", "scores", flags={"scored": "pseudo-refined", "split": "train"}, metrics={"miou": 31.0})
    assert {name: here for name, here in rows(options, capsys, 1).items() if here} == {
        "Step-1": {"refcoco/testA": 71.0}
    }
    assert rows(options, capsys, 7) == {"PRMS": {}, "PRMS + R": {"refcoco": 31.0}}


def test_scores_stand_in_the_row_of_their_networks_settings(options, capsys):
    umd = "refcocog-umd"
    for hidden, weight_cls, value in ((1024, 5.0, 60), (256, 5.0, 61), (1024, 2.0, 62)):
        settings = {**ENCODERS["CLIP ResNet-50"], "hidden": hidden, "weight_cls": weight_cls}
        step1 = make(options, umd, "step1", **settings)
        responses = make(options, umd, "responses", step1, flags={"split": "train"})
        flags = {"scored": "step1", "split": "train"}
        make(options, umd, "scores", responses, flags=flags, metrics={"pointit": value})
    by_hidden, by_lambda = rows(options, capsys, 4), rows(options, capsys, 5)
    assert {row: here for row, here in by_hidden.items() if here} == {"256": {"PointIt": 61}, "1024": {"PointIt": 60}}
    assert {row: here for row, here in by_lambda.items() if here} == {"2": {"PointIt": 62}, "5": {"PointIt": 60}}
    assert rows(options, capsys, 3)["CLIP ResNet-50"] == {"train PointIt": 60}


@pytest.mark.parametrize("number", range(1, 8))
def test_as_text(number, tmp_path, call_ris, capsys):
    make(
        Options(runs=tmp_path),
        "referit",
        "scores",
        flags={"scored": "step2", "split": "test"},
        metrics={"pointit": 74.94},
    )
    assert call_ris("table", number, "--runs", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Table {number}: ")
    assert max(map(len, lines)) <= 120
    assert ("  here" in "\n".join(lines)) == (number in (1, 2))


def test_there_is_no_table_8(call_ris):
    assert call_ris("table", 8) == 2
