"""The dense CRF beside pydensecrf, where that is installed: the same labels on generated pictures and photographs.

It builds with pip install 'cython<3' setuptools wheel && pip install --no-build-isolation pydensecrf2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.io.images import load_image
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.refine.crf import IRNET, DenseCrf, odds_of_labels, refine_labels
from ris_pipeline.shapes.generate import Item, draw_item

SAMPLE = Path(__file__).parents[2].parent / "shared" / "real-sample"

pytestmark = pytest.mark.reference


def infer(image: NDArray[np.uint8], hard: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return pydensecrf's marginals of label 1, float32 (H, W), with the settings of IRNet's crf_inference_label."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    crf = densecrf.DenseCRF2D(image.shape[1], image.shape[0], 2)
    probability = np.where(np.stack([hard == 0, hard == 1]), 0.7, 0.3)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(probability).reshape(2, -1), np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(crf.inference(10), np.float32)[1].reshape(hard.shape)


def draw_ellipse(hw: tuple[int, int], box_xyxy: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Return uint8 {0, 1} (H, W): the ellipse in the box, as far from the object's outline as a thresholded map is."""
    x1, y1, x2, y2 = box_xyxy
    y, x = np.indices(hw) + 0.5
    return (np.hypot((2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)) < 1).astype(np.uint8)


def read_generated() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    for number in range(12):
        image, targets = draw_item(Item(number, "train", (0, number), "shapes"))
        ys, xs = targets[0].mask.nonzero()
        yield image, draw_ellipse(image.shape[:2], (xs.min() - 3, ys.min() + 4, xs.max() + 9, ys.max() + 7))


def read_photographs() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    if not SAMPLE.is_dir():
        pytest.skip("the real samples are not here")
    dataset = load_dataset(load_card("refcoco"), SAMPLE / "coco-unique", "val")
    for ref in list({ref.image_id: ref for ref in dataset.refs}.values())[:30]:
        image = load_image(dataset.images[ref.image_id].path)
        yield image, draw_ellipse(image.shape[:2], ref.box_xyxy)


@pytest.mark.parametrize("read", [read_generated, read_photographs])
def test_labels_are_those_of_pydensecrf(read):
    n_changed = 0
    for number, (image, hard) in enumerate(read()):
        theirs = infer(image, hard)
        ours = expit(DenseCrf(image, IRNET).log_odds(odds_of_labels(hard[None]))[0])
        apart = refine_labels(image, hard[None], IRNET)[0] != (theirs > 0.5)
        n_changed += (hard != (theirs > 0.5)).sum()
        print(f"{number}: {image.shape}, {apart.sum()} pixels apart, marginals {np.abs(ours - theirs).max():.5f}")
        assert not apart.any()
        np.testing.assert_allclose(ours, theirs, atol=0.005)
    assert n_changed > 1000  # the CRF had something to do
