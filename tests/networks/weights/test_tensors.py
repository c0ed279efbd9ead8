"""Weights from files of every format, and files that are none."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ris_pipeline.errors import RisError
from ris_pipeline.networks.weights.tensors import read_weights


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
def test_truncated_files(tmp_path: Path, file_name: str, kept: float) -> None:
    path = tmp_path / file_name
    (torch.save if path.suffix == ".pt" else save_file)({"a": torch.arange(1000.0), "b": torch.ones(20, 20)}, path)
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
