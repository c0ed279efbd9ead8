"""CaR: marks by eye, the rounds by hand, and the map as a CRF of what CLIP-ES gives."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from ris_pipeline.errors import RisError
from ris_pipeline.methods import car
from ris_pipeline.methods.configs import CarConfig
from ris_pipeline.refine.crf import CLIP_ES, DenseCrf, odds_of_scores
from tiny import build_random

CPU = torch.device("cpu")


def test_a_circle_goes_round_the_mask():
    picture = np.zeros((40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:31, 20:41] = True
    marked = car.mark(picture, mask, circle=True, blur=False)
    red = (marked == (255, 0, 0)).all(axis=2)
    assert (marked[~red] == 0).all()
    ys, xs = red.nonzero()
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (20, 40, 10, 30)
    assert not red[20, 30]
    assert not picture.any()  # a copy


def test_what_is_outside_is_blurred():
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:31, 20:41] = True
    marked = car.mark(picture, mask, circle=False, blur=True)
    np.testing.assert_array_equal(marked[mask], picture[mask])
    assert marked[~mask].std() < 0.5 * picture[~mask].std()


def test_an_empty_mask_marks_nothing():
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    marked = car.mark(picture, np.zeros((40, 60), bool), circle=True, blur=True)
    np.testing.assert_array_equal(marked, picture)


def test_texts_are_dropped_until_all_fit():
    """Text 2 is nowhere in its picture, so it goes first; 1 only fits while 2 is not there to be confused with."""
    texts = torch.eye(3)
    first = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    later = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    assert car.drop_unfit([0, 1, 2], [first, first], texts, 10.0, 0.5) == [0, 1]
    assert car.drop_unfit([0, 1, 2], [first, later], texts, 10.0, 0.5) == [0]
    # Of its later picture, 1 has a probability of 1 / (1 + e²) = 0.12.
    assert car.drop_unfit([0, 1, 2], [first, later], texts, 10.0, 0.1) == [0, 1]


def test_what_is_asked_for_is_never_dropped():
    texts = torch.eye(2)
    swapped = texts.flip(0)  # each picture shows the other's text
    assert car.drop_unfit([1, 0], [swapped, swapped], texts, 10.0, 0.5) == [1]


@pytest.mark.parametrize("with_rivals", [False, True])
def test_the_map_is_the_crf_of_the_templated_sentence(tiny_vit, with_rivals, monkeypatch):
    settings = {"clip": str(tiny_vit), "input_size": 64, "background": "sky, sea", "stride": 4}
    responder = car.load(CarConfig(**settings, with_rivals=with_rivals), CPU)
    torch.manual_seed(0)
    colours = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    with torch.no_grad():
        (image,) = responder.encode_images(car.normalise(colours)[None])
        np.testing.assert_array_equal(image.colours, colours)
        texts = responder.encode_texts(["red star", "left circle"])
        monkeypatch.setattr(car, "drop_unfit", lambda rows, *others: list(rows))  # every rival stays
        found = responder.respond(image, texts, [1, 2])
        maps = responder.draw_maps(image, texts[:, 1])
    assert maps.max() > 0.1
    background = 1 - maps
    if with_rivals:
        background = np.maximum(background, maps[::-1])
    unary = odds_of_scores(maps, background)
    odds = DenseCrf(colours, CLIP_ES).log_odds(unary)
    odds = np.where((odds > 0).any(axis=(1, 2), keepdims=True), odds, unary)
    assert found.shape == (2, 16, 16)
    np.testing.assert_allclose(found.numpy(), odds.reshape(2, 16, 4, 16, 4).mean(axis=(2, 4)), atol=1e-4)


def test_an_object_that_vanishes_in_the_crf_is_what_the_map_shows(tiny_vit, monkeypatch):
    """A blue picture with a red pixel: the CRF takes it for noise."""
    responder = car.load(CarConfig(clip=str(tiny_vit), input_size=64, stride=1), CPU)
    colours = np.full((64, 64, 3), (40, 60, 180), np.uint8)
    (image,) = responder.encode_images(car.normalise(colours)[None])
    maps = np.full((2, 64, 64), 0.1, np.float32)
    maps[0, 30:32, 30:32], maps[1, :, :32] = 0.7, 0.7
    assert not (DenseCrf(colours, CLIP_ES).log_odds(odds_of_scores(maps, 1 - maps))[0] > 0).any()
    monkeypatch.setattr(car.Car, "draw_maps", lambda *_: maps)
    found = responder.respond(image, responder.encode_texts(["red star", "left circle"])).numpy()
    np.testing.assert_array_equal(found[0] > 0, maps[0] > 0.5)
    assert (found[1] > 0).mean() > 0.4


def test_the_judge_sees_marked_pictures(tiny_clip):
    """Marks change what CLIP sees, and an unmarked picture is the picture."""
    responder = car.load(CarConfig(clip=str(tiny_clip), input_size=64, with_rivals=True), CPU)
    torch.manual_seed(0)
    pixels = car.normalise(torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy())[None]
    (image,) = responder.encode_images(pixels)
    maps = np.zeros((2, 64, 64), np.float32)
    maps[1, 10:50, 10:50] = 1
    with torch.no_grad():
        unmarked, marked = responder.judge(image, maps)
        plain = torch.nn.functional.normalize(responder.clip.encode_image(responder.clip.renormalise(pixels)), dim=-1)
        circled = car.normalise(car.mark(image.colours, maps[1] > 0.5, circle=True, blur=False))
        expected = responder.clip.encode_image(responder.clip.renormalise(circled[None]))
    torch.testing.assert_close(unmarked, plain[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(marked, torch.nn.functional.normalize(expected, dim=-1)[0], rtol=0, atol=1e-5)
    assert (marked - unmarked).abs().max() > 1e-4


def test_settings_that_do_not_fit(tiny_clip):
    with pytest.raises(RisError, match="input_size 66 is no multiple of stride 4"):
        car.load(CarConfig(clip=str(tiny_clip), input_size=66), CPU)
    with pytest.raises(RisError, match="no ViT"):
        car.load(CarConfig(clip=str(tiny_clip), input_size=64, skip_last_block=True), CPU)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("method", ["car", "clip-es", "maskclip"])
def test_a_photograph_and_a_file_of_openais_are_all_it_needs(method, call_ris, tmp_path, monkeypatch):
    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-quickgelu", config)
    model = build_random(config).model
    for name, value in {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))  # as OpenAI's files have them
    inputs = torch.rand(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.int64)
    torch.jit.trace(model, inputs, check_trace=False).half().save(str(tmp_path / "ViT-B-16.pt"))
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.jpg")
    values = {"clip": "small-quickgelu", "clip_weights": str(tmp_path / "ViT-B-16.pt"), "input_size": 64}
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    (tmp_path / "own.toml").write_text(f"[{method}]\n{settings}")
    out = tmp_path / "out"
    assert call_ris(
        "predict", tmp_path / "photo.jpg", "the man in grey", "--method", method, "--dataset", "refcoco",
        "--config", tmp_path / "own.toml", "--out", out, runs=tmp_path / "runs", data_root=tmp_path, quiet=True,
    ) == 0  # fmt: skip
    with Image.open(out / "photo-1-mask.png") as mask:
        assert mask.size == (80, 60)
    (found,) = json.loads((out / "predictions.json").read_text())
    assert found["segmentation"]["size"] == [60, 80]
    assert method in found["network"]
