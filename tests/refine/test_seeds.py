import numpy as np

from ris_pipeline.refine import seeds
from ris_pipeline.refine.crf import IRNET


def test_thresholds():
    maps = np.array([[[0.0, 0.10, 0.101], [0.29, 0.301, 1.0]]])
    image = np.zeros((2, 3, 3), np.uint8)

    def leave(image, hard, settings):
        assert settings == IRNET  # whose seeds they are
        return hard

    labels = seeds.compute_seeds(maps, image, 0.3, 0.1, leave)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[[0, 0, 255], [255, 1, 1]]])
    np.testing.assert_array_equal(
        seeds.compute_seeds(maps, image, 0.5, 0.3, leave),
        [[[0, 0, 0], [0, 255, 1]]],
    )


def test_background_needs_both_cleaned_masks():
    # cleaned foreground of refs 0 and 1, then cleaned "possible" masks of refs 0 and 1
    cleaned = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 1]], [[1, 0, 1, 0]], [[0, 1, 0, 1]]], np.uint8)
    image = np.zeros((1, 4, 3), np.uint8)
    labels = seeds.compute_seeds(np.zeros((2, 1, 4)), image, 0.3, 0.1, lambda *given: cleaned)
    np.testing.assert_array_equal(labels, [[[1, 1, 255, 0]], [[0, 255, 0, 1]]])


def test_an_object_of_one_colour_with_a_blurred_map():
    image = np.full((24, 24, 3), 40, np.uint8)
    image[6:18, 6:18] = (220, 60, 30)
    y, x = np.indices((24, 24))
    blob = np.exp(-((y - 11.5) ** 2 + (x - 11.5) ** 2) / (2 * 6.0**2))  # 0.1 at radius 13, 0.3 at 9.3
    labels = seeds.compute_seeds(blob[None], image, 0.3, 0.1)[0]
    assert (labels[6:18, 6:18] == 1).all()
    assert (labels[[0, 0, -1, -1], [0, -1, 0, -1]] != 1).all()
    assert set(np.unique(labels)) <= {0, 1, 255}
