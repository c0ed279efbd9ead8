import json
from pathlib import Path

import numpy as np
import pytest

from noisy_proposals import propose
from ris_pipeline.datasets import Image
from ris_pipeline.datasets.io.segmentations import encode_rle
from ris_pipeline.errors import RisError
from ris_pipeline.maps.proposals import choose_proposals, digest_proposals, load_proposals

HW = (20, 30)
IMAGE = Image(1, Path("images/street.jpg"), HW)


def box(left, right):
    """The mask of some columns."""
    mask = np.zeros(HW, bool)
    mask[4:16, left:right] = True
    return mask


def write(folder, value):
    (folder / "street.json").write_text(json.dumps(value))
    return folder


def test_a_file_holds_masks_by_the_name_of_the_image(tmp_path):
    masks = [box(2, 9), box(0, 0), box(20, 25)]
    value = [{"segmentation": encode_rle(mask), "area": int(mask.sum()), "predicted_iou": 0.9} for mask in masks]
    found = load_proposals(write(tmp_path, value), IMAGE, HW)
    np.testing.assert_array_equal(found, [masks[0], masks[2]])  # an empty one is nothing to choose


def test_no_proposals_leave_empty_labels(tmp_path):
    proposals = load_proposals(write(tmp_path, []), IMAGE, HW)
    assert not choose_proposals(box(2, 9)[None].astype(np.float32), proposals).any()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"masks": []}, "list"),
        ([{"area": 3}], "proposal 1 has no run lengths"),
        ([{"segmentation": [[1, 1, 5, 1, 5, 5]]}], "coco_rle"),
        ([{"segmentation": encode_rle(np.ones((5, 5), bool))}], "5×5"),
        ([{"segmentation": {"size": list(HW), "counts": "~"}}], "broken"),
    ],
)
def test_a_bad_file_is_named(tmp_path, value, why):
    with pytest.raises(RisError, match=rf"street\.json.*{why}"):
        load_proposals(write(tmp_path, value), IMAGE, HW)


def test_the_digest_is_of_the_files_contents(tmp_path):
    first = digest_proposals(write(tmp_path, []), [IMAGE])
    assert digest_proposals(write(tmp_path, [{"segmentation": encode_rle(box(2, 9))}]), [IMAGE]) != first
    (tmp_path / "other.json").write_text("[]")  # of no image of the split
    assert digest_proposals(write(tmp_path, []), [IMAGE]) == first
    with pytest.raises(RisError, match=r"street\.json"):
        digest_proposals(tmp_path / "empty", [IMAGE])


def test_a_map_takes_the_object_that_it_covers_not_its_part_nor_its_neighbour():
    """A response that is wider than the object and reaches weakly into the next one."""
    response = np.zeros(HW, np.float32)
    response[3:17, 3:11] = 1
    response[4:16, 12:15] = 0.3
    proposals = np.stack([box(4, 11), box(4, 7), box(12, 20), box(4, 20), np.ones(HW, bool)])
    (label,) = choose_proposals(response[None], proposals)
    np.testing.assert_array_equal(label, box(4, 11))


def test_two_men_are_the_union_of_two_proposals():
    response = (box(2, 9) | box(20, 27)).astype(np.float32)
    (label,) = choose_proposals(response[None], np.stack([box(2, 9), box(12, 16), box(20, 27)]))
    np.testing.assert_array_equal(label, box(2, 9) | box(20, 27))


def test_halves_are_put_together():
    """Where the generator has split an object and has no whole of it."""
    (label,) = choose_proposals(box(4, 12)[None].astype(np.float32), np.stack([box(4, 8), box(8, 12), box(20, 25)]))
    np.testing.assert_array_equal(label, box(4, 12))


def test_the_object_is_found_among_noisy_proposals():
    """By a coarse response, half as strong around the object: the noise moves outlines by a pixel: IoU above 0.55."""
    objects = [box(2, 9), box(12, 17), box(20, 27)]
    response = np.stack([mask + 0.2 * np.roll(mask, 2, axis=1) for mask in objects]).astype(np.float32)
    for seed in range(5):
        found = propose(objects, np.random.default_rng(seed))
        proposals = np.stack([mask for mask in map(decode, found) if mask.any()])
        for label, mask in zip(choose_proposals(response, proposals), objects, strict=True):
            assert (label & mask).sum() / (label | mask).sum() > 0.55


def decode(proposal):
    """Not by the project's own reader."""
    from pycocotools import mask as coco

    return coco.decode(proposal["segmentation"]).astype(bool)
