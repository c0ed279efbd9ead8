"""CLIP's weights through every file format, honest and hostile."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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


class Touch:
    """A pickle of it makes a file when a careless reader loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def write_zip(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {"constants.pkl": b"", **records}.items():
            archive.writestr(f"clip/{name}", data)


def tensor_pickle(key: str, length: int, size: int) -> bytes:
    """A protocol-2 pickle of one module with the tensor `weight`, as TorchScript writes it."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little")

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(length)
    shape = b"(" + number(size) + b"t" + b"(" + number(1) + b"t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + number(0) + shape + b"\x89}tR"
    return b"\x80\x02c__torch__.m\nM\n)\x81}" + text("weight") + tensor + b"sb."


def test_archive_by_hand(tmp_path: Path) -> None:
    write_zip(
        tmp_path / "a.pt",
        {"data.pkl": tensor_pickle("0", 2, 2), "data/0": b"\x00\x00\x80\x3f\x00\x00\x00\x40"},
    )
    weights = read_weights(tmp_path / "a.pt")
    assert weights.is_openai
    assert weights.tensors["weight"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["torch", "pickle", "archive"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, kind: str) -> None:
    trace, path = tmp_path / "executed", tmp_path / "clip.pt"
    if kind == "torch":
        torch.save({"a": Touch(trace)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Touch(trace)))
    else:
        write_zip(path, {"data.pkl": pickle.dumps(Touch(trace), protocol=2)})
    with pytest.raises(RisError, match=r"clip\.pt: damaged, or not a file of tensors"):
        read_weights(path)
    assert not trace.exists()
    if kind == "pickle":  # the bait works
        pickle.loads(path.read_bytes())
        assert trace.exists()


@pytest.mark.parametrize("file_name", ["clip.pt", "clip.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_truncated_files(clip: Clip, tmp_path: Path, file_name: str, kept: float) -> None:
    path = tmp_path / file_name
    (write_state_dict if path.suffix == ".pt" else write_safetensors)(clip, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(RisError, match="damaged"):
        read_weights(path)


SELF_CONTAINING = b"\x80\x02c__torch__.m\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."


@pytest.mark.parametrize(
    ("records", "compression"),
    [
        ({"data.pkl": tensor_pickle("0", 2, 2)}, zipfile.ZIP_STORED),  # no record
        ({"data.pkl": tensor_pickle("0", 2, 2), "data/0": bytes(4)}, zipfile.ZIP_STORED),  # short record
        ({"data.pkl": tensor_pickle("0", 2, 9), "data/0": bytes(8)}, zipfile.ZIP_STORED),  # reads behind it
        ({"data.pkl": tensor_pickle("0", 2, 2), "data/0": bytes(8)}, zipfile.ZIP_DEFLATED),  # may be a bomb
        ({"data.pkl": SELF_CONTAINING}, zipfile.ZIP_STORED),
    ],
)
def test_inconsistent_archives(tmp_path: Path, records: dict[str, bytes], compression: int) -> None:
    write_zip(tmp_path / "clip.pt", records, compression)
    with pytest.raises(RisError, match="damaged"):
        read_weights(tmp_path / "clip.pt")


@pytest.mark.parametrize("rows", [[-1, 5], [5, 49408], [5]])
def test_compact_rows_must_fit(tmp_path: Path, rows: list[int]) -> None:
    tensors: dict[str, Tensor] = {
        "token_embedding.rows": torch.tensor(rows),
        "token_embedding.values": torch.zeros(2, 8),
    }
    save_file(tensors, tmp_path / "clip.safetensors")
    with pytest.raises(RisError, match="do not fit"):
        read_weights(tmp_path / "clip.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>404", "not weights but a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "not weights but a pointer of Git LFS"),
        (b"nothing of torch's", r"\(torch does not read it\); download it again"),
        (argparse.Namespace(lr=1), r"it asks for argparse\.Namespace\); .* save its state dict alone"),
        (np.float64(3), r"it asks for numpy\S+scalar\); .* save its state dict alone"),
    ],
)
def test_what_is_no_file_of_weights_is_named_as_what_it_is(tmp_path, content, message):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"model": {"a": torch.ones(2)}, "args": content}, path)
    with pytest.raises(RisError, match=rf"w\.pth: .*{message}"):
        read_weights(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod."])
def test_entries_lose_what_a_wrapper_put_before_all_of_them(tmp_path, prefix):
    torch.save({"state_dict": {f"{prefix}{name}": torch.ones(1) for name in ("a.b", "c")}}, tmp_path / "w.ckpt")
    assert list(read_weights(tmp_path / "w.ckpt").tensors) == ["a.b", "c"]
    torch.save({f"{prefix}a": torch.ones(1), "c": torch.ones(1)}, tmp_path / "part.pth")
    assert list(read_weights(tmp_path / "part.pth").tensors) == [f"{prefix}a", "c"]


def test_safetensors_are_read_under_any_name(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").tensors["a"].tolist() == [1, 1]
