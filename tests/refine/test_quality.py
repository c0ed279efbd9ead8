import numpy as np
import pytest

from ris_pipeline.datasets import Expression, Ref
from ris_pipeline.datasets.io.labels import save_label
from ris_pipeline.datasets.records import ImageGroup
from ris_pipeline.errors import RisError
from ris_pipeline.refine.quality import count_labels

HW = (40, 50)


def rows(start, stop, value=1):
    """A label of HW with a value in some of its 40 rows."""
    label = np.zeros(HW, np.uint8)
    label[start:stop] = value
    return label


def write(folder, labels):
    folder.mkdir()
    for ref_id, label in enumerate(labels):
        save_label(folder / f"{ref_id}.png", label)
    return folder


def groups_of(*images):
    """A group for each image, of refs with these ids."""
    return [
        ImageGroup(i, tuple(Ref(ref_id, i, "train", (Expression(ref_id, "a"),)) for ref_id in ids), range(0))
        for i, ids in enumerate(images)
    ]


def test_labels_are_counted(tmp_path):
    """Empty, one pixel of 2,000, a quarter, and one that is ignored; each of another image."""
    one_pixel = np.zeros(HW, np.uint8)
    one_pixel[3, 4] = 1
    folder = write(tmp_path / "labels", [rows(0, 0), one_pixel, rows(0, 10), rows(0, 40, 255)])
    done = []
    assert count_labels(folder, groups_of([0], [1], [2], [3]), None, done.append) == {
        "refs": 4, "empty": 2, "tiny": 1, "ignored_per_mille": 250, "overlap_per_mille": 0,
    }  # fmt: skip
    assert sum(done) == 4


def test_overlap_is_of_refs_of_one_image(tmp_path):
    """Rows 0 to 19 and 10 to 29: 10 of 30 rows twice. Equal labels on another image do not count, nor does 255."""
    folder = write(tmp_path / "labels", [rows(0, 20), rows(10, 30), rows(0, 20), rows(0, 40, 255)])
    assert count_labels(folder, groups_of([0, 1, 3], [2]), None, lambda n: None)["overlap_per_mille"] == 333


def test_agreement_is_the_mean_iou_with_earlier_labels(tmp_path):
    """IoU 1/3, 1 of two empty ones, 0 of one that has become empty."""
    new = write(tmp_path / "new", [rows(0, 20), rows(0, 0), rows(0, 0)])
    old = write(tmp_path / "old", [rows(10, 30), rows(0, 0), rows(5, 6)])
    assert count_labels(new, groups_of([0, 1], [2]), old, lambda n: None)["agreement_per_mille"] == 444


def test_a_missing_label_is_named(tmp_path):
    with pytest.raises(RisError, match=r"1\.png"):
        count_labels(write(tmp_path / "labels", [rows(0, 9)]), groups_of([0, 1]), None, lambda n: None)
