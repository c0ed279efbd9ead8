"""Figures read off the paper's tables by hand."""

import pytest

from ris_pipeline.scoring.paper import load_paper_tables, paper_figure


@pytest.mark.parametrize(
    ("dataset", "split", "stage", "metric", "figure"),
    [
        ("referit", "test", "step1", "pointit", 72.56),
        ("referit", "test", "step1", "miou", 33.33),
        ("referit", "test", "Step-2", "PointM", 67.0),
        ("refcoco", "testA", "clip_es", "pointit", 58.34),
        ("refcoco+", "testA", "step2", "pointit", 68.72),
        ("refcocog-umd", "train", "step1", "pointm", 53.69),
        ("refcocog-umd", "train", "step1", "miou", 27.81),
        ("refcocog-umd", "val", "step1", "pointit", 65.03),  # Table 1; Table 3 has 65.07
        ("refcocog-umd", "val", "step2", "miou", 36.19),
        ("refcocog-umd", "val", "step2", "pointit", 68.55),  # Table 1; Table 6 has 68.53
        ("referit", "test", "wwbl", "pointit", 57.4),  # Table 1; Table 2 has 56.09
        ("referit", "train", "PRMS", "miou", 33.3),
        ("refcoco", "train", "PRMS + R", "miou", 31.33),
        ("refcoco", "val", "step1", "oiou", None),
        ("shapes", "val", "step1", "pointit", None),
        ("refcoco", "val", "no such method", "pointit", None),
    ],
)
def test_paper_figure(dataset, split, stage, metric, figure):
    assert paper_figure(dataset, split, stage, metric) == figure


def test_tables_1_to_7_are_there():
    tables = [name for name in load_paper_tables() if name.startswith("table")]
    assert [name[5] for name in tables] == list("1234567")
