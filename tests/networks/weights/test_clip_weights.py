"""CLIP's weights through every file format, honest and hostile."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.weights.clip_weights import load_clip, read_weights, save_compact
from tiny import build_random

START, END = 49406, 49407
may_trace = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
TINY: dict[str, Any] = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return build_random(TINY)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that open_clip knows: "tiny" with GELU, "tiny-quickgelu"."""
    registry = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(registry, "tiny", TINY | {"quick_gelu": False})
    monkeypatch.setitem(registry, "tiny-quickgelu", TINY)


def activation_of_one(clip: Clip) -> float:
    return float(clip.model.transformer.resblocks[0].mlp.gelu(torch.tensor(1.0)))


QUICK_GELU_OF_ONE = 1 / (1 + math.exp(-1.702))
GELU_OF_ONE = (1 + math.erf(1 / math.sqrt(2))) / 2


def assert_same_values(clip: Clip, other: Clip) -> None:
    torch.testing.assert_close(dict(clip.model.state_dict()), dict(other.model.state_dict()))


def write_state_dict(clip: Clip, path: Path) -> None:
    torch.save(clip.model.state_dict(), path)


def write_checkpoint(clip: Clip, path: Path) -> None:
    state = {f"module.{name}": value for name, value in clip.model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)


def write_safetensors(clip: Clip, path: Path) -> None:
    save_file(dict(clip.model.state_dict()), path)


def write_archive(clip: Clip, path: Path, half: bool = False) -> None:
    """What OpenAI released: the traced model, whose sizes are entries of the state dict."""
    model = build_random(TINY).model
    model.load_state_dict(clip.model.state_dict())
    for name, value in {"input_resolution": 64, "context_length": 32, "vocab_size": 49408}.items():
        if hasattr(model, name):  # open_clip's are plain numbers
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    inputs = torch.rand(1, 3, 64, 64), torch.zeros(1, 32, dtype=torch.int64)
    traced = torch.jit.trace(model, inputs, check_trace=False)
    (traced.half() if half else traced).save(str(path))


@may_trace
@pytest.mark.parametrize(
    ("write", "file_name"),
    [
        (write_state_dict, "clip.pt"),
        (write_checkpoint, "clip.pt"),
        (write_safetensors, "clip.safetensors"),
        (write_archive, "RN50.pt"),
    ],
)
@pytest.mark.usefixtures("names")
def test_every_format_gives_the_values_back(clip: Clip, tmp_path: Path, write: Any, file_name: str) -> None:
    write(clip, tmp_path / file_name)
    assert_same_values(load_clip("tiny-quickgelu", str(tmp_path / file_name)), clip)


@may_trace
@pytest.mark.usefixtures("names")
def test_openais_archive_gets_quick_gelu_and_float32_under_any_name(clip: Clip, tmp_path: Path) -> None:
    write_archive(clip, tmp_path / "RN50.pt", half=True)
    loaded = load_clip("tiny", str(tmp_path / "RN50.pt"))
    assert activation_of_one(loaded) == pytest.approx(QUICK_GELU_OF_ONE)
    weight, expected = loaded.model.text_projection, clip.model.text_projection
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, expected.half().float())


@pytest.mark.usefixtures("names")
def test_local_files_get_the_activation_of_the_name(clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    write_state_dict(clip, path)
    assert activation_of_one(load_clip("tiny", str(path))) == pytest.approx(GELU_OF_ONE)
    torch.save(clip.model.state_dict() | {"vocab_size": torch.tensor(49408)}, path)  # OpenAI's, taken out
    assert activation_of_one(load_clip("tiny", str(path))) == pytest.approx(QUICK_GELU_OF_ONE)
    halved = {k: v.half().float() if v.is_floating_point() else v for k, v in clip.model.state_dict().items()}
    torch.save(halved, path)
    with pytest.raises(RisError, match="need tiny-quickgelu"):
        load_clip("tiny", str(path))
    load_clip("tiny-quickgelu", str(path))


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("is_on_hub", [True, False])
def test_size_and_place_of_a_download_are_said_before(is_on_hub, tmp_path, monkeypatch, capsys):
    """The tiny CLIP's parameters in float32; not again where the file is in the hub's cache, or in open_clip's."""
    tag = {"url": "https://example.org/models/tiny.pt", "quick_gelu": True}
    folder = tmp_path / ".cache" / "clip"
    if is_on_hub:
        tag["hf_hub"] = "someone/tiny/"
        folder = tmp_path / "hub"
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"openai": tag})
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in {"HF_HUB_CACHE": str(folder), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    said = []

    def fail(_: object) -> str:
        said.append(capsys.readouterr().err)
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    source = "https://huggingface.co/someone/tiny" if is_on_hub else tag["url"]
    with pytest.raises(RisError, match=rf"did not download from {source} \(no route to host\): give a local file"):
        load_clip("tiny", "openai")
    n_bytes = 4 * sum(parameter.numel() for parameter in Clip.from_config(TINY).parameters())
    size = f"up to {n_bytes / 1e6:.1f} MB"
    assert said == [f"fetching weights openai of tiny, {size}, from {source}; they are kept in {folder}\n"]
    if is_on_hub:
        here = folder / "models--someone--tiny"
        (here / "refs").mkdir(parents=True)
        (here / "refs" / "main").write_text("abc")
        file = here / "snapshots" / "abc" / "open_clip_model.safetensors"
    else:
        file = folder / "tiny.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(RisError):
        load_clip("tiny", "openai")
    assert said[1] == ""


@pytest.mark.usefixtures("names")
def test_a_tag_brings_its_own_activation(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state_dict(clip, tmp_path / "clip.pt")
    tags = {"openai": {"file": str(tmp_path / "clip.pt"), "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    loaded = load_clip("tiny", "openai")
    assert activation_of_one(loaded) == pytest.approx(QUICK_GELU_OF_ONE)
    assert_same_values(loaded, clip)
    with pytest.raises(RisError, match=r"laion: neither a file nor .* \(it knows: openai\)"):
        load_clip("tiny", "laion")

    def fail(_: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(RisError, match="no route to host"):
        load_clip("tiny", "openai")


def test_a_directory_with_a_compact_file(tmp_path: Path) -> None:
    config = {"model_cfg": TINY, "preprocess_cfg": {"size": 64, "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    path = tmp_path / "model.safetensors"
    clip = build_random(TINY).to(memory_format=torch.channels_last)
    save_compact(clip, path, rows=[END, 320, START, 0, 320])
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "open_clip_config.json"]
    stored = load_file(path)
    assert stored["token_embedding.rows"].tolist() == [0, 320, START, END]
    assert stored["token_embedding.values"].shape == (4, 8)
    assert "token_embedding.weight" not in stored

    loaded = load_clip(str(tmp_path))
    assert (loaded.mean, loaded.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    expected = torch.empty(49408, 8).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    expected[[0, 320, START, END]] = clip.model.token_embedding.weight.detach()[[0, 320, START, END]]
    torch.testing.assert_close(loaded.model.token_embedding.weight.detach(), expected)
    rest = {k: v for k, v in clip.model.state_dict().items() if k != "token_embedding.weight"}
    torch.testing.assert_close({k: loaded.model.state_dict()[k] for k in rest}, rest)


@pytest.mark.usefixtures("names")
def test_a_file_that_does_not_fit_is_described(clip: Clip, tmp_path: Path) -> None:
    state = OrderedDict(clip.model.state_dict())
    del state["ln_final.bias"]
    state["visual.layer9.weight"] = torch.zeros(1)
    state["logit_scale"] = torch.zeros(3)
    state.pop("visual.bn1.num_batches_tracked")  # not missed
    torch.save(state, tmp_path / "clip.pt")
    reason = r"missing: ln_final.bias; surplus: visual.layer9.weight; misshapen: logit_scale \(3,\) for \(\)\)"
    with pytest.raises(RisError, match=reason):
        load_clip("tiny", str(tmp_path / "clip.pt"))


def test_unknown_names_and_directories(tmp_path: Path) -> None:
    with pytest.raises(RisError, match="did you mean 'RN50-quickgelu'"):
        load_clip("RN50-quickgellu")
    with pytest.raises(RisError, match=r"open_clip_config.json: missing"):
        load_clip(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5]}}))
    with pytest.raises(RisError, match=r"open_clip_config.json: .*mean and std must have three values"):
        load_clip(str(tmp_path))
    with pytest.raises(RisError, match="no such file"):
        read_weights(tmp_path / "clip.pt")


# hostile and damaged files


@pytest.mark.parametrize(
    ("part", "key"),
    [("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_name")],
)
def test_a_directory_cannot_name_what_is_downloaded(tmp_path: Path, part: str, key: str) -> None:
    config = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}
    config[part] = {key: "hf-hub:somebody/model"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(RisError, match=f"open_clip_config.json: {key}: asks for what is not in the folder"):
        load_clip(str(tmp_path))
