"""CLIP-ES against its steps one by one, and the labels that Step-1 learns from it."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from ris_pipeline.arrays import BACKGROUND, FOREGROUND, IGNORE
from ris_pipeline.datasets.io.images import load_image
from ris_pipeline.datasets.records import Dataset, Expression, Image, Ref
from ris_pipeline.maps.rule import Rule, compute_map
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods import cam, clip_es, clip_es_trained
from ris_pipeline.methods.configs import ClipEsConfig, ClipEsTrainedConfig
from ris_pipeline.networks.dense import open_image
from ris_pipeline.refine.crf import CLIP_ES, DenseCrf, odds_of_scores

CPU = torch.device("cpu")
RULE = Rule(via_input=False, activation="none", to_image="centres", normalise="none", threshold=0.5)


@pytest.fixture
def responder(tiny_vit):
    return clip_es.load(ClipEsConfig(clip=str(tiny_vit), input_size=64, background="sky, sea"), CPU)


def test_maps_are_refined_cams_among_rivals_and_background(responder):
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 64, 64)
    texts = responder.encode_texts(["red star", "left circle", "the ring"])
    (image,) = responder.encode_images(pixels)
    found = responder.respond(image, texts, [1, 1, 2])
    assert found.shape == (3, 4, 4)
    assert responder.rule == RULE

    opened = open_image(responder.clip, responder.clip.renormalise(pixels))
    transition = cam.compute_transition(opened.affinity)
    classes = torch.cat([texts, responder.background])
    for own, rows in enumerate(([0, 2, 3, 4], [1, 2, 3, 4], [2, 0, 1, 3, 4])):
        (raw,) = cam.compute_cams(opened, classes, [rows], responder.scale)
        torch.testing.assert_close(found[own], cam.refine_cam(raw, transition, 0.7))
    assert found.max() > 0.1


def test_gradients_are_taken_where_none_are_recorded(responder):
    with torch.no_grad():
        (image,) = responder.encode_images(torch.randn(1, 3, 64, 64))
        grids = responder.respond(image, responder.encode_texts(["red star", "left circle", "the ring"]))
    assert grids.max() > 0.1  # a missing gradient gives zeros


def test_labels_are_those_of_the_crf_where_it_is_sure(tmp_path, tiny_image):
    dataset, store = tiny_image
    config = ClipEsTrainedConfig(input_size=64)
    targets = clip_es_trained.open_targets(config, dataset, store, tmp_path, 0, lambda n: None)
    image = load_image(dataset.images[1])
    maps = compute_map(torch.from_numpy(store.read_grids(range(3))), store.rule, store.input_size, (40, 60)).numpy()
    probs = expit(DenseCrf(image, CLIP_ES).log_odds(odds_of_scores(maps, 1 - maps)))
    sure, unsure, small = (targets.load(dataset, dataset.refs[0], e) for e in dataset.refs[0].expressions)
    expected = np.where(probs[0] > 0.95, FOREGROUND, np.where(probs[0] < 0.05, BACKGROUND, IGNORE))
    assert (sure != expected).mean() < 1e-3  # of rounding at the limits
    assert (sure[:, :28] == FOREGROUND).all()
    assert (sure[:, 32:] == BACKGROUND).all()
    assert (unsure == IGNORE).all()
    assert (probs[2] < 0.05).all()  # the CRF takes it away
    assert (small == IGNORE).all()


@pytest.fixture
def tiny_image(tmp_path):
    """A picture, red on the left, with a sure and an unsure map of that, and one of a corner of it, hardly visible."""
    import PIL.Image

    picture = np.full((40, 60, 3), (40, 60, 180), np.uint8)
    picture[:, :30] = (200, 40, 40)
    PIL.Image.fromarray(picture).save(tmp_path / "a.png")
    refs = (Ref(5, 1, "train", (Expression(50, "a"), Expression(51, "b"), Expression(52, "c"))),)
    dataset = Dataset("toy", "train", {1: Image(1, tmp_path / "a.png", (40, 60))}, refs)
    store = ResponseStore.create(
        tmp_path / "train.zarr", sent_id=[50, 51, 52], ref_id=[5, 5, 5], image_hw=[(40, 60)] * 3, grid_hw=(4, 6),
        input_size=64, rule=RULE, attributes={},
    )  # fmt: skip
    sure = np.repeat([[0.99, 0.99, 0.99, 0.01, 0.01, 0.01]], 4, axis=0)
    unsure = np.full((4, 6), 0.5)
    small = np.zeros((4, 6))
    small[0, 0] = 0.55
    store.write_block(0, np.stack([sure, unsure, small]).astype(np.float32))
    return dataset, store
