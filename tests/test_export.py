"""Networks as one file: the map of ONNX and of torch.export is that of the Segmenter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch

from ris_pipeline import export as exporting
from ris_pipeline.errors import RisError
from ris_pipeline.export import export
from ris_pipeline.methods.tris import Step1Responder, Step2Responder
from ris_pipeline.networks.load import freeze
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.predict import Segmenter
from tiny import TINY, build_random

SENTENCE = "the dog on the left"  # docs/predict.md's
DOCUMENT = (Path(__file__).parents[1] / "docs" / "predict.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=["step1", "step2"])
def responder(request: pytest.FixtureRequest) -> Step1Responder | Step2Responder:
    clip = build_random(TINY)
    if request.param == "step1":
        return Step1Responder(freeze(Step1(clip, clip, hidden=8)), 64)
    return Step2Responder(freeze(Step2(clip, clip, widths=(4, 4, 4, 4))), 64)


def draw() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    image = np.random.default_rng(7).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return image, open_clip.tokenize([SENTENCE], context_length=20).numpy()


def test_onnx_gives_the_segmenters_map(responder: Step1Responder | Step2Responder, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export(responder, tmp_path / "ris.onnx", "onnx") < 1e-3
    assert [path.name for path in tmp_path.iterdir()] == ["ris.onnx"]
    image, tokens = draw()
    session = onnxruntime.InferenceSession(str(tmp_path / "ris.onnx"))
    found = session.run(None, {"image": image, "tokens": tokens})[0]
    expected = Segmenter(responder)(image, SENTENCE)
    np.testing.assert_allclose(found, expected.map, atol=1e-3)
    PIL.Image.fromarray(image).save(tmp_path / "photo.png")
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "onnxruntime" in block]
    lines = lines.replace("photo.jpg", str(tmp_path / "photo.png")).replace("320", "64")
    names: dict[str, Any] = {}
    exec(lines.replace("ris.onnx", str(tmp_path / "ris.onnx")), names)
    np.testing.assert_array_equal(names["mask"], found > 0.5)
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["input_size"], facts["n_tokens"]) == ("64", "20")
    unclear = np.abs(found - float(facts["threshold"])) < 1e-3
    np.testing.assert_array_equal((found > float(facts["threshold"]))[~unclear], expected.mask[~unclear])


@pytest.mark.filterwarnings("ignore:No complete tensor")
def test_torch_export_gives_the_segmenters_map(responder: Step1Responder | Step2Responder, tmp_path: Path) -> None:
    assert export(responder, tmp_path / "ris.pt2", "torch") < 1e-3
    image, tokens = draw()
    facts = {"ris.json": ""}
    program = torch.export.load(tmp_path / "ris.pt2", extra_files=facts)
    found = program.module()(torch.from_numpy(image), torch.from_numpy(tokens))
    np.testing.assert_allclose(found.numpy(), Segmenter(responder)(image, SENTENCE).map, atol=1e-3)
    assert json.loads(facts["ris.json"])["tokenizer"] == "CLIP's BPE (open_clip.tokenize)"


def test_a_file_whose_maps_are_others_is_not_written(
    responder: Step1Responder | Step2Responder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(RisError, match="not written: its maps differ"):
        export(responder, tmp_path / "ris.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_other_methods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RisError, match="only a trained Step-1 or Step-2"):
        export(object(), tmp_path / "ris.onnx", "onnx")
