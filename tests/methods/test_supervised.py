"""Step-1 taught by masks: the loss by hand, and the targets that are made of a teacher's maps."""

import numpy as np
import pytest
import torch

from ris_pipeline.datasets.io.labels import load_label
from ris_pipeline.datasets.records import Dataset, Expression, Image, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import Rule
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods import maskclip_trained, supervised
from ris_pipeline.methods.configs import SupervisedConfig
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.draws import Draw

RULE = Rule(via_input=True, activation="none", to_image="centres", normalise="max", threshold=0.5)


@pytest.fixture
def config(tiny_clip):
    return SupervisedConfig(clip=str(tiny_clip), hidden=16, input_size=64)


def test_the_loss_is_the_cross_entropy_of_each_sentences_own_score(config):
    torch.manual_seed(0)
    network = supervised.build(config, None).eval()
    pixels = torch.randn(2, 3, 64, 64)
    targets = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 255], (3, 64, 64)).astype(np.uint8))
    sentences = ["red star", "left circle", "ring"]
    draws = [Draw(k, Expression(k, sentence), ()) for k, sentence in enumerate(sentences)]
    found = supervised.build_task(network, config)(Batch(pixels, torch.tensor([0, 1, 0]), draws, targets, (5, 9)))[
        "loss"
    ]

    responder = supervised.wrap(network, config)
    images = responder.encode_images(pixels)
    n_counted = total = 0
    for row, sentence, target in zip((0, 1, 0), sentences, targets.numpy(), strict=True):
        grid = responder.respond(images[row], responder.encode_texts([sentence]))
        score = torch.nn.functional.interpolate(grid[None], (64, 64), mode="bilinear")[0, 0].detach().double().numpy()
        prob = 1 / (1 + np.exp(-score))
        total -= np.log(np.where(target == 1, prob, 1 - prob))[target != 255].sum()
        n_counted += (target != 255).sum()
    assert found.item() == pytest.approx(total / n_counted, rel=1e-4)


def test_a_batch_of_ignored_pixels_teaches_nothing(config):
    network = supervised.build(config, None)
    batch = Batch(
        torch.randn(1, 3, 64, 64), torch.tensor([0]), [Draw(0, Expression(0, "ring"), ())],
        torch.full((1, 64, 64), 255, dtype=torch.uint8), (5,),
    )  # fmt: skip
    assert supervised.build_task(network, config)(batch)["loss"].item() == 0


@pytest.fixture
def dataset(tmp_path):
    refs = (
        Ref(5, 1, "train", (Expression(50, "a"), Expression(51, "b"))),
        Ref(6, 1, "train", (Expression(60, "c"),)),
    )
    return Dataset("toy", "train", {1: Image(1, tmp_path / "a.png", (40, 20))}, refs)


@pytest.fixture
def store(tmp_path):
    """Grids of 2×2: the top left corner of sentence 50, the right column of 51, the top row of 60."""
    store = ResponseStore.create(
        tmp_path / "train.zarr", sent_id=[50, 51, 60], ref_id=[5, 5, 6], image_hw=[(40, 20)] * 3, grid_hw=(2, 2),
        input_size=64, rule=RULE, attributes={},
    )  # fmt: skip
    grids = np.array([[[0.8, 0], [0, 0]], [[0, 0.1], [0, 0.1]], [[3, 3], [0, 0]]], np.float32)
    store.write_block(0, grids)
    return store


def test_targets_are_the_thresholded_maps_of_each_sentence(config, dataset, store, tmp_path):
    done = []
    targets = maskclip_trained.open_targets(config, dataset, store, tmp_path, 0, done.append)
    assert done == [3]
    right = targets.load(dataset, dataset.refs[0], dataset.refs[0].expressions[1])
    assert right.shape == (64, 64)
    np.testing.assert_array_equal(right, np.repeat([[0] * 32 + [1] * 32], 64, axis=0))
    corner = targets.load(dataset, dataset.refs[0], dataset.refs[0].expressions[0])
    assert corner[:17, :17].all()
    assert not corner[:, 32:].any()
    top = targets.load(dataset, dataset.refs[1], dataset.refs[1].expressions[0])
    np.testing.assert_array_equal(top, right.T[::-1])


def test_targets_that_are_there_are_not_made_again(config, dataset, store, tmp_path):
    maskclip_trained.open_targets(config, dataset, store, tmp_path, 0, lambda n: None)
    whole = (tmp_path / "50.png").stat().st_mtime_ns
    (tmp_path / "51.png").unlink()
    (tmp_path / "60.png").write_bytes(b"")  # as a crash of the machine leaves it
    maskclip_trained.open_targets(config, dataset, store, tmp_path, 0, lambda n: None)
    assert (tmp_path / "50.png").stat().st_mtime_ns == whole
    assert load_label(tmp_path / "51.png").shape == load_label(tmp_path / "60.png").shape == (64, 64)


def test_a_teachers_maps_of_other_sentences_are_refused(config, dataset, tmp_path):
    store = ResponseStore.create(
        tmp_path / "train.zarr", sent_id=[50, 52, 60], ref_id=[5, 5, 6], image_hw=[(40, 20)] * 3, grid_hw=(2, 2),
        input_size=64, rule=RULE, attributes={},
    )  # fmt: skip
    with pytest.raises(RisError, match="image 1 has other sentences in the data set; dump it again"):
        maskclip_trained.open_targets(config, dataset, store, tmp_path, 0, lambda n: None)
