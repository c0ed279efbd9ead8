"""A data set of three refs in one image, with no file behind it."""

from pathlib import Path

import pytest

from ris_pipeline.datasets.records import Annotation, Dataset, Expression, Image, Ref
from ris_pipeline.scoring.metrics import Outcome


@pytest.fixture
def dataset() -> Dataset:
    image = Image(1, Path("a.jpg"), (100, 200))
    refs = (
        Ref(
            10,
            1,
            "val",
            (Expression(100, "dog"), Expression(101, "the dog on the left")),
            (Annotation((0, 0, 20, 50)),),
            n_same_kind=2,
        ),
        Ref(
            11,
            1,
            "val",
            (Expression(110, "dog behind the brown dog that sleeps on a rug"),),
            (Annotation((0, 0, 100, 100)),),
            n_same_kind=2,
        ),
        Ref(12, 1, "val", (Expression(120, "cat"),), n_same_kind=1),
    )
    return Dataset("toy", "val", {1: image}, refs)


@pytest.fixture
def outcome():
    """A function (ref_id, sent_id, iou in percent, weight=1, point_it=None) that gives an outcome."""

    def make(ref_id: int, sent_id: int, iou: int, weight: int = 1, point_it: bool | None = None) -> Outcome:
        return Outcome(ref_id, sent_id, weight, point_it, None, iou, 100, 0.25)

    return make
