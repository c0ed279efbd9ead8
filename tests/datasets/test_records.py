from pathlib import Path

import pytest

from ris_pipeline.datasets.records import Annotation, Dataset, Expression, Image, Ref, group_by_image
from ris_pipeline.errors import RisError

RLE = {"size": [1, 2], "counts": [1, 1]}


def make_ref(ref_id, image_id=1, sent_ids=(0,), box=(0.0, 0.0, 1.0, 1.0), segmentation=None):
    expressions = tuple(Expression(i, f"sentence {i}") for i in sent_ids)
    return Ref(ref_id, image_id, "train", expressions, (Annotation(box, segmentation),))


def make_dataset(*refs, hw=(1, 2)):
    images = {i: Image(i, Path(f"{i}.jpg"), hw) for i in (1, 2)}
    return Dataset("toy", "train", images, refs)


def test_counts_and_siblings():
    a, b, c = make_ref(7, 1, (0, 1)), make_ref(8, 2, (2,)), make_ref(9, 1, (3,))
    dataset = make_dataset(a, b, c)
    assert dataset.n_expressions == 4
    assert dataset.siblings(a) == (c,)
    assert dataset.siblings(b) == ()


def test_groups_by_image():
    a, b, c = make_ref(7, 1, (0, 1)), make_ref(8, 2, (2,)), make_ref(9, 1, (3,))
    first, second = group_by_image(make_dataset(a, b, c))
    assert (first.image_id, first.refs, first.rows) == (1, (a, c), range(3))
    assert (second.image_id, second.refs, second.rows) == (2, (b,), range(3, 4))
    assert first.ref_ids == [7, 7, 9]


def test_masks():
    good, none = make_ref(1, segmentation=RLE), make_ref(2, sent_ids=(5,))
    dataset = make_dataset(good, none)
    assert dataset.load_mask(good).tolist() == [[False, True]]
    with pytest.raises(RisError, match=r"toy train: ref 2, image 1\.jpg: there is no mask"):
        dataset.load_mask(none)
    with pytest.raises(RisError, match=r"ref 1, image 1\.jpg: bad segmentation: .* the image has 9×9"):
        make_dataset(good, hw=(9, 9)).load_mask(good)


def test_the_edges_of_a_box_are_half_open_whatever_its_file_means():
    box = (2.0, 3.0, 11.0, 12.0)
    assert Annotation(box).edges_xyxy == box
    # ReferIt's right and bottom are the last pixels inside: ten pixels by ten.
    assert Annotation(box, box_is_inclusive=True).edges_xyxy == (2, 3, 12, 13)
    assert Annotation(box_is_inclusive=True).edges_xyxy is None
