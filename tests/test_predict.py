"""The Segmenter against its networks called by hand, one sentence at a time."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ris_pipeline.artifacts import MANIFEST
from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.datasets.images import to_pixels
from ris_pipeline.errors import RisError
from ris_pipeline.networks.build import build_step1, build_step2
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.clip_weights import save_compact
from ris_pipeline.predict import Segmenter, resize_logits
from ris_pipeline.responses import compute_map
from ris_pipeline.training.loop import WEIGHTS

TINY = {
    "embed_dim": 6,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
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
    (folder / MANIFEST).write_text(json.dumps({"stage": stage, "configuration": asdict(config)}))


def test_step1(clip_folder, tmp_path):
    config = Step1Config(clip=str(clip_folder), clip_weights=None, hidden=8, input_size=96)
    network = build_step1(config).eval()
    save_artifact(tmp_path, "step1", config, network)
    found = Segmenter.load(tmp_path)(IMAGE, SENTENCES)
    pixels = to_pixels(IMAGE, 96)[None]
    for sentence, prediction in zip(SENTENCES, found, strict=True):
        with torch.no_grad():
            S = network(pixels, network.clip.tokenize([sentence]))[0]
        expected = compute_map(S, 96, (40, 60))[0].numpy()
        np.testing.assert_allclose(prediction.map, expected, atol=1e-4)
        assert prediction.map.dtype == np.float32
        np.testing.assert_array_equal(prediction.mask, prediction.map > 1e-9)


def test_step2(clip_folder, tmp_path):
    config = Step2Config(clip=str(clip_folder), clip_weights=None, input_size=64)
    network = build_step2(config).eval()
    save_artifact(tmp_path, "step2", config, network)
    found = Segmenter.load(tmp_path)(IMAGE, SENTENCES)
    pixels = to_pixels(IMAGE, 64)[None]
    for sentence, prediction in zip(SENTENCES, found, strict=True):
        with torch.no_grad():
            logits = network(pixels, network.clip.tokenize([sentence]))
        assert prediction.map.shape == prediction.mask.shape == (40, 60)
        np.testing.assert_allclose(prediction.map, resize_logits(logits, (40, 60))[0].sigmoid(), atol=1e-5)
        np.testing.assert_array_equal(prediction.mask, prediction.map > 0.5)


def test_resized_corner_to_corner():
    resized = resize_logits(torch.tensor([[[-3.0, 3], [-3, 3]]]), (2, 4))
    torch.testing.assert_close(resized, torch.tensor([[[-3.0, -1, 1, 3], [-3, -1, 1, 3]]]))


def test_an_artifact_of_another_stage(tmp_path):
    (tmp_path / MANIFEST).write_text('{"stage": "responses"}')
    with pytest.raises(RisError, match="an artifact of responses, which does not segment"):
        Segmenter.load(tmp_path)
    with pytest.raises(RisError, match=r"manifest\.json"):
        Segmenter.load(tmp_path / "nowhere")
