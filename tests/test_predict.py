"""The Segmenter against its networks called by hand, one sentence at a time."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

import ris_pipeline
from ris_pipeline.artifacts.files import render_json
from ris_pipeline.artifacts.identity import with_checksum
from ris_pipeline.artifacts.layout import MANIFEST, WEIGHTS
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.datasets.io.images import to_pixels
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import RESPONSE, compute_map
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import step1_from_config, step2_from_config
from ris_pipeline.networks.weights.clip_weights import save_compact
from ris_pipeline.predict import Prediction, Segmenter
from tiny import TINY

SENTENCES = ["red ball", "the left one", "dog"]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A CLIP of random values, as load_clip reads it."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_compact(Clip.from_config(TINY), folder / "model.safetensors", range(10))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    return folder


def save_artifact(folder: Path, stage: str, config, network) -> None:
    save_file(network.state_dict(), folder / WEIGHTS)
    manifest = with_checksum({"stage": stage, "flags": {}, "configuration": asdict(config)})
    (folder / MANIFEST).write_text(render_json(manifest))


def test_step1(clip_folder, tmp_path):
    config = Step1Config(clip=str(clip_folder), clip_weights=None, hidden=8, input_size=96)
    network = step1_from_config(config).eval()
    save_artifact(tmp_path, "step1", config, network)
    found = Segmenter.load(tmp_path)(IMAGE, SENTENCES)
    pixels = to_pixels(IMAGE, 96)[None]
    for sentence, prediction in zip(SENTENCES, found, strict=True):
        with torch.no_grad():
            S = network(pixels, network.clip.tokenize([sentence]))[0]
        expected = compute_map(S, RESPONSE, 96, (40, 60))[0].numpy()
        np.testing.assert_allclose(prediction.map, expected, atol=1e-4)
        assert prediction.map.dtype == np.float32
        np.testing.assert_array_equal(prediction.mask, prediction.map > 1e-9)


def test_step2(clip_folder, tmp_path):
    config = Step2Config(clip=str(clip_folder), clip_weights=None, input_size=64)
    network = step2_from_config(config).eval()
    save_artifact(tmp_path, "step2", config, network)
    found = Segmenter.load(tmp_path)(IMAGE, SENTENCES)
    pixels = to_pixels(IMAGE, 64)[None]
    for sentence, prediction in zip(SENTENCES, found, strict=True):
        with torch.no_grad():
            logits = network(pixels, network.clip.tokenize([sentence]))
        assert prediction.map.shape == prediction.mask.shape == (40, 60)
        resized = torch.nn.functional.interpolate(logits[None], (40, 60), mode="bilinear", align_corners=True)[0, 0]
        np.testing.assert_allclose(prediction.map, resized.sigmoid(), atol=1e-5)
        np.testing.assert_array_equal(prediction.mask, prediction.map > 0.5)


def test_an_artifact_of_another_stage(tmp_path):
    (tmp_path / MANIFEST).write_text(render_json(with_checksum({"stage": "responses", "flags": {}})))
    with pytest.raises(RisError, match="an artifact of responses, which does not segment"):
        Segmenter.load(tmp_path)
    with pytest.raises(RisError, match=r"nowhere: no such checkpoint"):
        Segmenter.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RisError, match=r"empty: holds no artifact itself"):
        Segmenter.load(tmp_path / "empty")


def test_a_folder_that_holds_artifacts_names_them(tmp_path):
    (tmp_path / "step1" / "0123456789ab").mkdir(parents=True)
    (tmp_path / "step1" / "0123456789ab" / MANIFEST).write_text('{"stage": "step1"}')
    with pytest.raises(RisError, match=r"it holds .*step1/0123456789ab"):
        Segmenter.load(tmp_path / "step1")


@pytest.fixture(scope="module")
def segmenters(clip_folder, tmp_path_factory) -> dict[str, Segmenter]:
    found = {}
    for stage, config, build in (
        ("step1", Step1Config(clip=str(clip_folder), clip_weights=None, hidden=8, input_size=96), step1_from_config),
        (
            "step2",
            Step2Config(clip=str(clip_folder), clip_weights=None, input_size=64, decoder_width=4),
            step2_from_config,
        ),
    ):
        folder = tmp_path_factory.mktemp(stage)
        save_artifact(folder, stage, config, build(config))
        found[stage] = Segmenter.load(str(folder), "cpu")
    return found


@pytest.mark.parametrize("stage", ["step1", "step2"])
def test_images_in_batches_are_those_one_by_one(stage, segmenters):
    segmenter = segmenters[stage]
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(5)]
    for image, found in zip(images, segmenter.segment_images(images, SENTENCES, batch_size=2), strict=True):
        for sentence, prediction in zip(SENTENCES, found, strict=True):
            alone = segmenter(image, sentence)
            assert prediction.map.shape == image.shape[:2]
            np.testing.assert_allclose(prediction.map, alone.map, atol=1e-4)


def test_only_a_batch_of_images_is_in_memory(segmenters):
    taken = []

    def images():
        for i in range(6):
            taken.append(i)
            yield IMAGE

    found = segmenters["step1"].segment_images(images(), ["dog"], batch_size=2)
    next(found)
    assert taken == [0, 1]


def test_forms_of_one_image(segmenters, tmp_path):
    segmenter = segmenters["step1"]
    PIL.Image.fromarray(IMAGE).save(tmp_path / "a.png")
    expected = segmenter(IMAGE, "dog").map
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), PIL.Image.open(tmp_path / "a.png")):
        np.testing.assert_array_equal(segmenter(image, "dog").map, expected)
    grey = IMAGE[:, :, 0]
    in_colour = np.stack([grey] * 3, axis=2)
    np.testing.assert_array_equal(segmenter(grey, "dog").map, segmenter(in_colour, "dog").map)
    np.testing.assert_array_equal(segmenter(PIL.Image.fromarray(grey), "dog").map, segmenter(in_colour, "dog").map)


@pytest.mark.parametrize(
    "image", [IMAGE.astype(np.float32), IMAGE[None], np.zeros((0, 4, 3), np.uint8), IMAGE[:, :, :2], "gone.png"]
)
def test_what_is_no_image(image, segmenters):
    with pytest.raises(RisError, match=r"an image is uint8|gone\.png is missing"):
        segmenters["step1"](image, "dog")


@pytest.mark.parametrize(
    ("sentences", "fault"),
    [
        ([], "no sentence"),
        ("", "is empty"),
        (["dog", "  "], "sentence 2 is empty"),
        ([1], "is int, not text"),
        (b"dog", "no sentence"),
    ],
)
def test_what_is_no_sentence(sentences, fault, segmenters):
    with pytest.raises(RisError, match=fault):
        segmenters["step1"](IMAGE, sentences)


@pytest.mark.parametrize("image", [[IMAGE, IMAGE], b"bytes", 3])
def test_what_is_no_image_at_all(image, segmenters):
    with pytest.raises(RisError, match="an image is a path, a PIL image or an array"):
        segmenters["step1"](image, "dog")


@pytest.mark.parametrize("stage", ["step1", "step2"])
def test_an_image_is_encoded_once_for_many_sentences(stage, segmenters, monkeypatch):
    segmenter, calls = segmenters[stage], []
    network = segmenter.responder.network
    encode = network.encode_image
    monkeypatch.setattr(network, "encode_image", lambda pixels: (calls.append(1), encode(pixels))[1])
    segmenter.set_image(IMAGE)
    found = [segmenter.segment(sentence) for sentence in SENTENCES]
    assert calls == [1]
    for prediction, expected in zip(found, segmenter(IMAGE, SENTENCES), strict=True):
        np.testing.assert_allclose(prediction.map, expected.map, atol=1e-5)


def test_a_sentence_that_is_too_long_is_warned_of(segmenters):
    long = "the small thing that is near the other thing on the left side of the picture, namely the purple heart!"
    with pytest.warns(UserWarning, match="the end is cut"):
        segmenters["step1"](IMAGE, long)
    chinese = "七个汉字填满二十个词"
    assert segmenters["step1"].responder.find_cut(["a dog!", long, chinese]) == [long, chinese]


def test_a_sentence_in_a_script_that_clip_does_not_know_is_warned_of(segmenters):
    with pytest.warns(UserWarning, match='in a script that this CLIP has hardly seen, translate it: "собака"$'):
        segmenters["step2"](IMAGE, ["собака", "naïve façade"])
    (line,) = segmenters["step2"].describe_unread(["собака", "naïve façade", "кот", "дом", "сад"])
    assert line.endswith('"собака", "кот", "дом" and 1 more')


def test_a_tokenizer_of_its_own_is_trusted_with_any_script(segmenters, monkeypatch):
    monkeypatch.setattr(segmenters["step2"].responder.network.clip, "latin_only", False)
    assert segmenters["step2"].describe_unread(["собака"]) == []


def test_a_prediction_in_the_fields_forms(tmp_path):
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:5] = True
    found = Prediction(mask * np.float32(0.5), mask)
    assert found.box == (2, 1, 5, 3)
    assert found.polygons == [[2, 1, 2, 2, 4, 2, 4, 1]]
    assert found.rle["size"] == [4, 5]
    np.testing.assert_array_equal(coco_mask.decode(found.rle).astype(bool), mask)
    found.save(tmp_path / "mask.png")
    with PIL.Image.open(tmp_path / "mask.png") as picture:
        np.testing.assert_array_equal(np.array(picture), mask * 255)
    painted = np.array(found.plot(np.zeros((4, 5, 3), np.uint8)))
    np.testing.assert_array_equal(painted[:, :, 0] > 0, mask)
    assert repr(found) == "Prediction(4×5 pixels, mask 30.0%, score 0.50)"
    nothing = Prediction(np.zeros((4, 5), np.float32), np.zeros((4, 5), bool))
    assert nothing.box is None
    assert nothing.polygons == []
    with pytest.raises(RisError, match="the mask"):
        found.plot(np.zeros((5, 5, 3), np.uint8))


def test_score_is_the_mean_over_the_mask():
    response = np.array([[0.2, 0.4], [0.9, 0.1]], np.float32)
    assert Prediction(response, response > 0.15).score == pytest.approx(0.5)
    assert Prediction(response, response > 1).score == 0


def test_the_package_offers_it_and_stays_light():
    code = "import sys, ris_pipeline; assert 'torch' not in sys.modules; ris_pipeline.Segmenter.load"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ris_pipeline.Segmenter is Segmenter
    with pytest.raises(AttributeError, match="has no attribute 'segmenter'"):
        _ = ris_pipeline.segmenter
