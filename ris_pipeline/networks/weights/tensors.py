"""Files of weights: safetensors, state dicts of torch and OpenAI's TorchScript archives, as tensors by name.

No reader here executes what a file contains.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ris_pipeline.datasets.io.files import find_kind
from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import VOCABULARY_SIZE

EMBEDDING = "token_embedding.weight"  # of a CLIP; a compact file has some of its rows instead, under these two names:
ROWS, VALUES = "token_embedding.rows", "token_embedding.values"
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of all entries: of DataParallel, torch.compile, Lightning
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")  # entries of OpenAI's files, not weights
_STORAGE_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a file by name, and whether the file itself shows that it is OpenAI's."""

    tensors: dict[str, Tensor]
    is_openai: bool


def read_weights(path: Path) -> Weights:
    """Return the tensors in a `.safetensors`, a state dict saved by torch, or OpenAI's TorchScript archive.

    A compact token embedding is expanded to all rows. Raises RisError where the file is missing, damaged, or
    holds anything but tensors.
    """
    if not path.is_file():
        raise RisError(f"{path}: no such file; give the path of a file of weights")
    try:
        is_archive = _is_torchscript(path)
        if path.suffix == ".safetensors" or _read_start(path)[8:9] == b"{":  # whatever it is called
            tensors = load_file(path)
        elif is_archive:
            tensors = _read_torchscript(path)
        else:
            tensors = _read_state_dict(path)
        sizes = [tensors.pop(name) for name in _OPENAI_SIZES if name in tensors]
        return Weights(_expand_embedding(tensors), is_openai=is_archive or bool(sizes))
    except Exception as error:  # a damaged or hostile file can fail anywhere inside the readers
        raise RisError(f"{path}: {_explain_unreadable(path, error)}") from error


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _explain_unreadable(path: Path, error: Exception) -> str:
    """Return what is wrong with a file of weights, by its first bytes or by what its reader says, and what to do."""
    start = _read_start(path)
    if not start.startswith(b"PK") and (kind := find_kind(start)):  # torch's own files are zip archives
        return f"not weights but {kind}"
    text = str(error)
    if refused := re.search(r"GLOBAL (\S+)", text):
        advice = "download it again or, where you trust it, save its state dict alone"
        return f"damaged, or not a file of tensors only (it asks for {refused[1]}); {advice}"
    # torch's own text is about its arguments.
    reason = "torch does not read it" if text.startswith("Weights only load failed") else text.partition("\n")[0][:120]
    return f"damaged, or not a file of tensors only ({reason}); download it again"


def load_weights(model: nn.Module, file: Path) -> None:
    """Copy all weights of a file into `model`; errors as of `read_weights` and `copy_tensors`."""
    copy_tensors(model, read_weights(file).tensors, file)


def copy_tensors(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Copy `tensors`, read from `file`, into `model`, in the model's own precision.

    Raises RisError that names the first missing, surplus and misshapen entries where the two differ.
    """
    faults = describe_faults(model.state_dict(), tensors)
    if faults:
        raise RisError(
            f"{file}: not the weights of this network ({faults}); give those of the network that is configured"
        )
    model.load_state_dict(tensors, strict=False)


def describe_faults(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return the first missing, surplus and misshapen entries of `found` and how many more, "" if there are none."""
    sizes = {name: (tuple(found[name].shape), tuple(expected[name].shape)) for name in expected if name in found}
    faults = {
        # BatchNorm's step counters are not used at a fixed momentum, and some converted files drop them
        "missing": [n for n in expected if n not in found and not n.endswith("num_batches_tracked")],
        "surplus": [n for n in found if n not in expected],
        "misshapen": [f"{n} {has} for {needs}" for n, (has, needs) in sizes.items() if has != needs],
    }
    return "; ".join(f"{kind}: {first_few(names)}" for kind, names in faults.items() if names)


def first_few(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _expand_embedding(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if ROWS not in tensors:
        return tensors
    rows, values = tensors.pop(ROWS), tensors.pop(VALUES)
    embedding = torch.empty(VOCABULARY_SIZE, values.shape[1])
    embedding.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    if rows.shape != values.shape[:1] or rows.min() < 0 or rows.max() >= VOCABULARY_SIZE:
        raise ValueError(f"{ROWS} and {VALUES} do not fit each other")
    embedding[rows] = values.float()
    return tensors | {EMBEDDING: embedding}


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    # mapped, what lies beside the weights in a training checkpoint (twice their size) is never read
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    for wrapper in ("state_dict", "model"):  # training checkpoints of open_clip, and of others
        state = state.get(wrapper, state)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("not a flat state dict")
    while prefix := next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        (root,) = {name.partition("/")[0] for name in archive.namelist()}
        with archive.open(f"{root}/data.pkl") as data:
            module = _ArchiveUnpickler(data, archive, root).load()
    tensors = dict(_named_tensors(module, "", depth=0))
    # the causal mask is an attribute of some archives, and computed by the model
    return {name: value for name, value in tensors.items() if name.split(".")[-1] != "attn_mask"}


class _ScriptModule:
    """Holds the attributes of one module of an archive; its code stays unread."""


def _named_tensors(module: _ScriptModule, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > 10:  # a CLIP has 6 levels; a module inside itself has no end
        raise ValueError("modules nested too deep")
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _ScriptModule):
            yield from _named_tensors(value, f"{prefix}{name}.", depth + 1)


class _ArchiveUnpickler(pickle.Unpickler):
    """Reads `data.pkl` of a TorchScript archive into `_ScriptModule`s and tensors, and refuses all else.

    torch.jit.load would compile the archive's code as well, which is of no use here.
    """

    def __init__(self, data: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(data)
        self.archive = archive
        self.root = root
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return an empty holder for a class of the archive, or one of the parts of a tensor."""
        if module.split(".")[0] == "__torch__":
            # a new class each time: nothing that a pickle sets on it outlives this file
            return type("ScriptModule", (_ScriptModule,), {})
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"the archive asks for {module}.{name}")

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        """Return the storage that `pid` names, as a flat tensor."""
        _, dtype, key, _, length = pid
        if (key, dtype) not in self.storages:
            info = self.archive.getinfo(f"{self.root}/data/{key}")
            # only a plain record is as long in memory as on disk
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != length * dtype.itemsize:
                raise pickle.UnpicklingError(f"record {key} has the wrong length")
            self.storages[key, dtype] = torch.frombuffer(bytearray(self.archive.read(info)), dtype=dtype)
        return self.storages[key, dtype]
