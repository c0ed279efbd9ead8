"""Responses and segmentations of many images at once, against one sentence at a time."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from ris_pipeline.config import ResponsesConfig
from ris_pipeline.datasets import Dataset, Expression, Image, Ref
from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.datasets.records import group_by_image
from ris_pipeline.maps import store as responses
from ris_pipeline.maps.respond import fill_responses, load_pixels, open_store, read_batches, respond, split_batches
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods.tris import Step1Responder, Step2Responder
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from tiny import TINY

# (image, sentences) of each ref, in the data set's order: the refs of image 0 and 1 are apart.
REFS = [
    (0, ["red star", "star on the left"]),
    (1, ["blue ring"]),
    (0, ["ring", "small ring", "red star"]),
    (2, ["red star", "cross"]),
    (1, ["left cross", "blue ring", "big cross"]),
]
SENT_IDS = [10, 11, 13, 14, 15, 12, 18, 19, 20, 16, 17]  # in the order of the responses: image by image


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    images = {}
    for i, hw in enumerate([(30, 40), (50, 20), (24, 24)]):
        Picture.fromarray(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        images[i] = Image(i, tmp_path / f"{i}.png", None if i == 1 else hw)
    refs, sent_id = [], 10
    for i, sentences in REFS:
        expressions = tuple(Expression(sent_id + k, sentence) for k, sentence in enumerate(sentences))
        refs.append(Ref(100 + len(refs), i, "val", expressions))
        sent_id += len(sentences)
    return Dataset("tiny", "val", images, tuple(refs))


def randomised(module):
    """Fresh InstanceNorms and BatchNorms would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture
def network():
    torch.manual_seed(0)
    clip = Clip.from_config(TINY)
    return randomised(Step1(clip, clip, hidden=5))


@pytest.fixture
def aux():
    torch.manual_seed(1)
    return randomised(Clip.from_config(TINY))


@pytest.fixture
def encoded(network, monkeypatch):
    """How many images each call of the image encoder had."""
    counts = []
    encode_image = network.encode_image
    monkeypatch.setattr(network, "encode_image", lambda pixels: (counts.append(len(pixels)), encode_image(pixels))[1])
    return counts


def fill(network, aux, dataset, path, batch_size=2, advance=lambda n: None):
    responder = Step1Responder(network, 64)
    store = open_store(path, dataset, responder, {"step1": "abc"})
    missing = store.missing_blocks(scored=aux is not None)
    fill_responses(responder, aux, dataset, store, missing, ResponsesConfig(batch_size=batch_size), advance)
    return ResponseStore.open(path)


def test_groups_are_the_images_in_order_of_their_first_refs(dataset):
    groups = group_by_image(dataset)
    assert [group.image_id for group in groups] == [0, 1, 2]
    assert [[ref.ref_id for ref in group.refs] for group in groups] == [[100, 102], [101, 104], [103]]
    assert [group.rows for group in groups] == [range(5), range(5, 9), range(9, 11)]
    assert groups[0].sentences == ["red star", "star on the left", "ring", "small ring", "red star"]
    assert groups[0].ref_ids == [100, 100, 102, 102, 102]


def test_a_new_store_has_a_row_for_every_sentence(dataset, network, tmp_path):
    store = open_store(tmp_path / "val.zarr", dataset, Step1Responder(network, 96), {"step1": "abc"})
    assert store.sent_id.tolist() == SENT_IDS
    assert store.ref_id.tolist() == [100] * 2 + [102] * 3 + [101] + [104] * 3 + [103] * 2
    assert store.image_hw.tolist() == [[30, 40]] * 5 + [[50, 20]] * 4 + [[24, 24]] * 2  # image 1 was opened
    assert store.grid_hw == (3, 3)
    assert store.input_size == 96
    assert store.attributes["step1"] == "abc"
    assert (store.attributes["dataset"], store.attributes["split"]) == ("tiny", "val")


def set_block(monkeypatch, rows):
    """Stores of at most so many rows a block."""
    monkeypatch.setattr(responses, "BLOCK_ROWS", rows)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("block", [4, 1024])
def test_responses_equal_one_sentence_at_a_time(dataset, network, tmp_path, monkeypatch, batch_size, block):
    set_block(monkeypatch, block)
    store = fill(network, None, dataset, tmp_path / "val.zarr", batch_size)
    assert store.missing_blocks() == []
    for ref in dataset.refs:
        pixels = to_pixels(load_image(dataset.images[ref.image_id].path), 64)[None]
        for k, expression in enumerate(ref.expressions):
            with torch.no_grad():
                V = network.encode_image(pixels)
                T = network.encode_text(network.clip.tokenize([expression.sentence]))
                expected = network.respond(V, T)[0, 0]  # alone with its image: the official evaluation
            found = torch.from_numpy(store.read_grids(store.rows_of_ref(ref.ref_id))[k])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not store.has_selection


def test_each_image_is_encoded_once(dataset, network, encoded, tmp_path):
    done = []
    fill(network, None, dataset, tmp_path / "val.zarr", batch_size=2, advance=done.append)
    assert encoded == [2, 1]
    assert done == [9, 2]


def test_prms_selects_by_the_cosines_of_each_ref_alone(dataset, network, aux, tmp_path):
    store = fill(network, aux, dataset, tmp_path / "val.zarr")
    assert store.has_selection
    resize = torch.nn.functional.interpolate
    for ref in dataset.refs:
        pixels = to_pixels(load_image(dataset.images[ref.image_id].path), 64)[None]
        texts = aux.encode_text(aux.tokenize([e.sentence for e in ref.expressions])).detach().double().numpy()
        scores = []
        for grid in store.read_grids(store.rows_of_ref(ref.ref_id)):
            mask = resize(torch.tensor(grid)[None, None], (64, 64), mode="bilinear", align_corners=False).relu()
            feature = aux.encode_image(mask * pixels)[0].detach().double().numpy()
            cosines = texts @ feature / np.linalg.norm(texts, axis=1) / np.linalg.norm(feature)
            scores.append(cosines.sum())
        rows = store.rows_of_ref(ref.ref_id)
        np.testing.assert_allclose(store.prms_score[rows.start : rows.stop], scores, atol=1e-4)
        assert store.selected(ref.ref_id) == np.argmax(scores)


def test_an_interrupted_dump_goes_on_at_the_first_missing_block(dataset, network, aux, encoded, tmp_path, monkeypatch):
    set_block(monkeypatch, 4)  # 11 rows: 3 blocks, the first two end inside image 0 and 1
    calm = fill(network, aux, dataset, tmp_path / "calm.zarr", batch_size=1)

    seen = []

    def break_off(n):
        seen.append(n)
        if sum(seen) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(network, aux, dataset, tmp_path / "broken.zarr", batch_size=1, advance=break_off)
    assert seen == [4, 1]
    assert ResponseStore.open(tmp_path / "broken.zarr").missing_blocks() == [1, 2]

    encoded.clear()
    done = []
    again = fill(network, aux, dataset, tmp_path / "broken.zarr", batch_size=1, advance=done.append)
    assert sum(done) == 7  # of 11 sentences
    assert len(encoded) == 4  # images 0 and 1 for the second block, 1 and 2 for the third
    assert again.missing_blocks() == []
    for block in range(3):
        np.testing.assert_array_equal(again.read_block(block), calm.read_block(block))
    np.testing.assert_array_equal(again.prms_score, calm.prms_score)
    np.testing.assert_array_equal(again.selected_rows, calm.selected_rows)


def test_a_whole_store_is_not_computed_again(dataset, network, aux, encoded, tmp_path):
    before = fill(network, aux, dataset, tmp_path / "val.zarr").selected_rows
    encoded.clear()
    store = fill(network, aux, dataset, tmp_path / "val.zarr")
    assert encoded == []
    np.testing.assert_array_equal(store.selected_rows, before)


def test_pixels_are_those_of_the_groups(dataset, network):
    groups = group_by_image(dataset)
    pixels = load_pixels(dataset, groups[1:], Step1Responder(network, 32))
    assert pixels.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pixels[1], to_pixels(load_image(dataset.images[2].path), 32))


def test_batches_are_read_ahead_of_their_turn(dataset, network, monkeypatch):
    """Of three batches all images fit into what may be read ahead; the pixels are each batch's own."""
    was_read = threading.Semaphore(0)

    def read(image):
        was_read.release()
        return load_image(image)

    monkeypatch.setattr("ris_pipeline.maps.respond.load_image", read)
    responder, groups = Step1Responder(network, 32), group_by_image(dataset)
    batches = read_batches(dataset, split_batches(groups, 1), responder)
    found = [next(batches)]
    assert all(was_read.acquire(timeout=10) for _ in groups)
    found += batches
    assert [list(own) for own, _ in found] == [[group] for group in groups]
    assert torch.equal(torch.cat([pixels for _, pixels in found]), load_pixels(dataset, groups, responder))


def test_segmentations_equal_one_sentence_at_a_time(dataset):
    torch.manual_seed(2)
    clip = Clip.from_config(TINY)
    step2 = randomised(Step2(clip, clip, widths=(4, 4, 4, 4)))
    groups = group_by_image(dataset)
    responder = Step2Responder(step2, 64)
    assert responder.grid_hw == (64, 64)
    pixels = load_pixels(dataset, groups, responder)
    results = respond(responder, pixels, groups)
    assert [tuple(result.shape) for result in results] == [(5, 64, 64), (4, 64, 64), (2, 64, 64)]
    for i, group in enumerate(groups):
        for sentence, found in zip(group.sentences, results[i], strict=True):
            with torch.no_grad():
                expected = step2(pixels[i : i + 1], clip.tokenize([sentence]))[0]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_batches_keep_the_order():
    assert [list(part) for part in split_batches("abcde", 2)] == [["a", "b"], ["c", "d"], ["e"]]


def test_the_sides_of_grids_are_those_that_the_encoders_give(network):
    """Odd sides, which some layers round up and others down, at stride 32 and 16."""
    fine = Clip.from_config(TINY, last_stride=16).eval()
    for clip in (network.clip, fine):
        for side in (64, 65, 95, 97, 126, 127, 129):
            with torch.no_grad():
                assert clip.levels(torch.zeros(1, 3, side, side))[3].shape[-2:] == 2 * (clip.grid_side(side),), side
