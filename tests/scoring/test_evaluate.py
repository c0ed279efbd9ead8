"""Outcomes of 4×4 images whose scores can be counted by eye."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ris_pipeline.datasets.io.labels import save_label
from ris_pipeline.datasets.io.segmentations import encode_rle
from ris_pipeline.datasets.records import Annotation, Dataset, Expression, Image, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import RESPONSE, SEGMENTATION
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.scoring import evaluate
from ris_pipeline.scoring.metrics import Outcome

TOP_LEFT = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
BOTTOM = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
# Bilinear from 2×2 to 4×4: along the columns 4, 2.5, −0.5, −2, so the mask is the left half.
LEFT_GRID = [[4, -2], [4, -2]]
RIGHT_GRID = [[-2, 4], [-2, 4]]
NOWHERE_GRID = [[-1, -1], [-1, -1]]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two images; the refs 1 and 3 are of the first one and 2, which stands between them, of the second."""
    images = {}
    for image_id in (7, 8):
        path = tmp_path / f"{image_id}.png"
        PIL.Image.fromarray(np.full((4, 4, 3), image_id, np.uint8)).save(path)
        images[image_id] = Image(image_id, path, (4, 4))
    refs = (
        Ref(
            1,
            7,
            "val",
            (Expression(10, "left"), Expression(11, "right")),
            (Annotation((0, 0, 2, 2), encode_rle(TOP_LEFT)),),
        ),
        Ref(2, 8, "val", (Expression(20, "nowhere"),), (Annotation((0, 3, 4, 4), encode_rle(BOTTOM)),)),
        Ref(3, 7, "val", (Expression(30, "right"),), (Annotation((0, 3, 4, 4), encode_rle(BOTTOM)),)),
    )
    return Dataset("tiny", "val", images, refs)


def unlabelled(dataset: Dataset) -> Dataset:
    refs = tuple(dataclasses.replace(ref, annotations=(Annotation(),)) for ref in dataset.refs)
    return dataclasses.replace(dataset, refs=refs)


@pytest.fixture
def store(tmp_path: Path) -> ResponseStore:
    """The grids of the sentences 10, 11, 30 of the first image and 20 of the second, image by image."""
    store = ResponseStore.create(
        tmp_path / "val.zarr",
        sent_id=[10, 11, 30, 20],
        ref_id=[1, 1, 3, 2],
        image_hw=[(4, 4)] * 4,
        grid_hw=(2, 2),
        input_size=4,
        rule=RESPONSE,
        attributes={},
    )
    grids = np.array([LEFT_GRID, RIGHT_GRID, RIGHT_GRID, NOWHERE_GRID], np.float32)
    store.write_block(0, grids, np.array([0.1, 0.9, 0.5, 0.5], np.float32))
    return store


def by_sentence(outcomes: Iterator[Outcome]) -> dict[int, Outcome]:
    return {outcome.sent_id: outcome for outcome in outcomes}


def test_maps(dataset, store):
    found = by_sentence(evaluate.evaluate_maps(dataset, store))
    # Of the left half's 8 pixels the square covers 4; the point is the first of equal ones, (0, 0). Box 2×4 ∩ 2×2.
    assert found[10] == Outcome(1, 10, 1, True, True, 4, 8, 0.5)
    # The right half misses the square: 8 + 4 pixels. Its point is (0, 3).
    assert found[11] == Outcome(1, 11, 1, False, False, 0, 12, 0.0)
    # The right half and the bottom row share 2 of 10 pixels; boxes 2×4 and 4×1 likewise.
    assert found[30] == Outcome(3, 30, 1, False, False, 2, 10, 0.2)
    # An empty map points at (0, 0).
    assert found[20] == Outcome(2, 20, 1, False, False, 0, 4, 0.0)


def test_prms_scores_one_map_per_ref(dataset, store):
    store.select_maps()
    found = list(evaluate.evaluate_choice(dataset, store))
    assert [(outcome.ref_id, outcome.sent_id, outcome.weight) for outcome in found] == [
        (1, 11, 2),
        (3, 30, 1),
        (2, 20, 1),
    ]
    assert (found[0].intersection, found[0].union) == (0, 12)


def test_prms_needs_a_selection(dataset, store):
    with pytest.raises(RisError, match="no selected map; dump the responses with PRMS"):
        list(evaluate.evaluate_choice(dataset, store))


def test_responses_to_other_sentences_are_refused(dataset, store):
    first = dataclasses.replace(dataset.refs[0], expressions=(Expression(10, "left"), Expression(12, "new")))
    changed = dataclasses.replace(dataset, refs=(first, *dataset.refs[1:]))
    with pytest.raises(RisError, match="ref 1 has other sentences in the data set"):
        list(evaluate.evaluate_maps(changed, store))


def test_pseudolabels(dataset, tmp_path):
    label = np.zeros((4, 4), np.uint8)
    label[0, :3], label[3] = 1, 255  # two pixels of the square and one beside; what is ignored does not count
    for ref in dataset.refs:
        save_label(tmp_path / f"{ref.ref_id}.png", label)
    found = list(evaluate.evaluate_pseudolabels(dataset, tmp_path))
    # Box 3×1 over the square's 2×2: 2 of 3 + 4 − 2.
    assert found[0] == Outcome(1, 10, 2, None, None, 2, 5, 0.4)
    assert found[2] == Outcome(2, 20, 1, None, None, 0, 7, 0.0)


class TableNetwork:
    """A responder that looks its logits up by the sentence, and counts the images that it encodes."""

    input_size, grid_hw, rule, device = 4, (4, 4), SEGMENTATION, torch.device("cpu")

    def __init__(self, logits: dict[str, list[list[float]]]) -> None:
        self.logits, self.n_encoded = logits, 0

    def encode_images(self, pixels):
        self.n_encoded += len(pixels)
        return [None] * len(pixels)

    def encode_texts(self, sentences):
        return torch.tensor([list(self.logits).index(sentence) for sentence in sentences])

    def respond(self, image, texts, ref_ids=None):
        return torch.tensor(list(self.logits.values()))[texts]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_network(dataset, batch_size):
    minus = np.full((4, 4), -1.0)
    left, right, nowhere = minus.copy(), minus.copy(), minus.copy()
    left[1, 1], left[0, 0], left[2, 2] = 5, 1, 0  # a logit of 0 is not foreground
    right[3, 2:] = 2, 3
    nowhere[3, 3] = -0.5  # the mask is empty, the point still the largest logit
    tables = {"left": left.tolist(), "right": right.tolist(), "nowhere": nowhere.tolist()}
    network = TableNetwork(tables)
    found = by_sentence(evaluate.evaluate_network(dataset, network, batch_size))
    assert network.n_encoded == 2
    assert found[10] == Outcome(1, 10, 1, True, True, 2, 4, 1.0)
    assert found[11] == Outcome(1, 11, 1, False, False, 0, 6, 0.0)
    assert found[30] == Outcome(3, 30, 1, True, True, 2, 4, 0.5)
    assert found[20] == Outcome(2, 20, 1, True, True, 0, 4, 0.0)


def test_network_with_cleaned_masks(dataset):
    def take_the_left_half(image, masks):
        assert (image.shape, image.dtype, masks.shape[1:], masks.dtype) == ((4, 4, 3), np.uint8, (4, 4), bool)
        left_half = np.zeros_like(masks)
        left_half[:, :, :2] = True
        return left_half

    nowhere = np.full((4, 4), -1.0)
    nowhere[1, 1] = -0.5
    network = TableNetwork({text: nowhere.tolist() for text in ("left", "right", "nowhere")})
    plain = by_sentence(evaluate.evaluate_network(dataset, network, 16))
    found = by_sentence(evaluate.evaluate_network(dataset, network, 16, take_the_left_half))
    assert (plain[10].intersection, plain[10].union) == (0, 4)
    assert (found[10].intersection, found[10].union) == (4, 8)
    assert (found[10].point_it, found[10].point_m) == (plain[10].point_it, plain[10].point_m)


def test_chance(dataset):
    found = by_sentence(evaluate.evaluate_chance(dataset))
    # The whole image: 16 pixels, of which each object has 4.
    assert all((outcome.intersection, outcome.union, outcome.box_iou) == (4, 16, 0.25) for outcome in found.values())
    one_ref = dataclasses.replace(dataset, refs=dataset.refs[2:])
    assert by_sentence(evaluate.evaluate_chance(one_ref))[30] == found[30]


def test_chance_points_everywhere_alike(dataset):
    many = tuple(Expression(sent_id, "") for sent_id in range(2000))
    one_ref = dataclasses.replace(dataset, refs=(dataclasses.replace(dataset.refs[0], expressions=many),))
    found = list(evaluate.evaluate_chance(one_ref, seed=1))
    # 9 of 16 pixels are in the box, whose borders count; 4 on the mask. Three standard deviations: 0.033.
    assert abs(np.mean([outcome.point_it for outcome in found]) - 9 / 16) < 0.033
    assert abs(np.mean([outcome.point_m for outcome in found]) - 4 / 16) < 0.03


def test_without_ground_truth_there_is_nothing_to_tell(dataset):
    (first, *_) = evaluate.evaluate_chance(unlabelled(dataset))
    assert first == Outcome(1, 10, 1, None, None, None, None, None)


def test_small_boxes(dataset):
    # A quarter of the image each: left out by "at most 25 %".
    assert evaluate.leave_out_small_boxes(dataset, 0) is dataset
    assert evaluate.leave_out_small_boxes(dataset, 0.24).refs == dataset.refs
    large = dataclasses.replace(dataset.refs[1], annotations=(Annotation((0, 2, 4, 4)),))
    mixed = dataclasses.replace(dataset, refs=(dataset.refs[0], large, unlabelled(dataset).refs[2]))
    assert [ref.ref_id for ref in evaluate.leave_out_small_boxes(mixed, 0.25).refs] == [2, 3]
    with pytest.raises(RisError, match="tiny val: no box covers more than 25% of its image"):
        evaluate.leave_out_small_boxes(dataset, 0.25)


def test_an_image_whose_size_is_not_recorded(dataset):
    images = {key: dataclasses.replace(image, hw=None) for key, image in dataset.images.items()}
    found = list(evaluate.evaluate_chance(dataclasses.replace(dataset, images=images)))
    assert found[0].union == 16


def test_sentences_about_nothing(dataset, store):
    """The grid of 20 is negative everywhere, that of 30 is not."""
    refs = (dataset.refs[0], *(dataclasses.replace(ref, annotations=()) for ref in dataset.refs[1:]))
    outcomes = by_sentence(evaluate.evaluate_maps(dataclasses.replace(dataset, refs=refs), store))
    assert [(outcomes[i].exists, outcomes[i].iou) for i in (10, 20, 30)] == [(True, 0.5), (False, 1.0), (False, 0.0)]
    assert [outcomes[i].point_it for i in (20, 30)] == [None, None]


def test_what_is_found_where_pixels_are_ignored_is_not_counted(dataset, store):
    everything = {"size": [4, 4], "counts": [0, 16]}
    bottom = encode_rle(BOTTOM)
    refs = tuple(dataclasses.replace(dataset.refs[0], ignored=ignored) for ignored in (None, bottom, everything))
    found = [
        by_sentence(evaluate.evaluate_maps(dataclasses.replace(dataset, refs=(ref, *dataset.refs[1:])), store))[11]
        for ref in refs
    ]
    # Sentence 11's mask is the right half, eight pixels, two of them in the bottom row; the truth is the upper left.
    assert [(outcome.intersection, outcome.union) for outcome in found] == [(0, 12), (0, 10), (0, 0)]
