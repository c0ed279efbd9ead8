"""CLIP by name: from open_clip's downloads, from local files, or the small one that is shipped.

Which activation: weights trained with QuickGELU give wrong features under GELU, without any error.

- A tag that open_clip downloads knows its own.
- A local file that shows to be OpenAI's (a TorchScript archive, or their size entries) gets QuickGELU.
- Any other local file gets what the name says: "RN50-quickgelu" or "RN50". Under a plain name it is refused
  where its matrices hold half-precision values only, as all copies of OpenAI's do.

No reader here executes what a file contains.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import huggingface_hub
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ris_pipeline.artifacts.files import write_bytes
from ris_pipeline.artifacts.layout import CLIP_CONFIG, WEIGHTS
from ris_pipeline.config import N_TOKENS
from ris_pipeline.datasets.io.files import find_kind
from ris_pipeline.errors import DownloadError, RisError, did_you_mean
from ris_pipeline.networks.clip import VOCABULARY_SIZE, Clip
from ris_pipeline.networks.weights.extra import import_transformers
from ris_pipeline.process.console import Console
from ris_pipeline.process.units import format_size

SHAPES_CLIP = Path(__file__).parents[2] / "weights" / "shapes-clip"

_HUB_WEIGHTS = "open_clip_model.safetensors"  # as open_clip calls them on the hub
_OLD_HUB_WEIGHTS = "open_clip_pytorch_model.bin"
_EMBEDDING = "token_embedding.weight"
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of all entries: of DataParallel, torch.compile, Lightning
_ROWS, _VALUES = "token_embedding.rows", "token_embedding.values"
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


def load_clip(name: str, weights: str | None = None, n_tokens: int | None = N_TOKENS) -> Clip:
    """Return the Clip called `name`, float32.

    `name` is a model of open_clip ("RN50-quickgelu"), "shapes" for the small shipped one, or a directory in
    open_clip's format, as its models are on the hub: open_clip_config.json, of whose "preprocess_cfg" mean and std are
    read ("last_stride": 16 beside "model_cfg" is Clip's), model.safetensors or open_clip_model.safetensors, and the
    tokenizer's files where the model has its own. `weights` is one of open_clip's tags ("openai"), which open_clip
    downloads, or a local file; None means random values, or for a directory its own file. "openai", which is every
    configuration's default, is a directory's own file as well: there is no other.
    Raises RisError for an unknown name or tag, and for a file that cannot be read or does not fit the model.
    """
    if name == "shapes" and not SHAPES_CLIP.is_dir():
        raise RisError(f"{SHAPES_CLIP}: the small CLIP is not there; make it by ris pretrain-clip")
    directory = SHAPES_CLIP if name == "shapes" else Path(name)
    if directory.is_dir():
        own = next((name for name in (WEIGHTS, _HUB_WEIGHTS) if (directory / name).is_file()), WEIGHTS)
        file = directory / own if weights in (None, "openai") else Path(weights)
        config, settings = _read_config(directory / CLIP_CONFIG)
        settings["tokenizer"] = _load_tokenizer(config, f"local-dir:{directory}")
        return _build(config, read_weights(file), file, n_tokens, **settings)
    config = _find_config(name)
    tokenizer = _load_tokenizer(config, name)
    if weights is None:
        # The first tag's: a family has one preprocessing.
        tags = open_clip.list_pretrained_tags_by_model(name)
        statistics = _find_statistics(open_clip.get_pretrained_cfg(name, tags[0])) if tags else {}
        return Clip.from_config(config, n_tokens, tokenizer=tokenizer, **statistics)
    tag = open_clip.get_pretrained_cfg(name, weights)
    if tag:
        file = _download(name, weights, tag, config)
        config["quick_gelu"] = bool(tag.get("quick_gelu"))
        return _build(config, read_weights(file), file, n_tokens, tokenizer=tokenizer, **_find_statistics(tag))
    file = Path(weights)
    if not file.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise RisError(f"{weights}: neither a file nor weights open_clip knows for {name} (it knows: {tags})")
    found = read_weights(file)
    if not (config.get("quick_gelu") or found.is_openai) and _holds_half_values(found.tensors):
        raise RisError(f"{file}: half-precision values as in OpenAI's weights, which need {name}-quickgelu")
    return _build(config, found, file, n_tokens, tokenizer=tokenizer)


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


def copy_tensors(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Copy `tensors`, read from `file`, into `model`, in the model's own precision.

    Raises RisError that names the first missing, surplus and misshapen entries where the two differ.
    """
    faults = describe_faults(model.state_dict(), tensors)
    if faults:
        raise RisError(f"{file}: not the weights of this network ({faults})")
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


def save_compact(clip: Clip, path: Path, rows: Iterable[int], *, half: bool = False) -> None:
    """Write the values of `clip` as safetensors, of the token embedding only the `rows` in use.

    `half` stores matrices and kernels in half precision; biases, scales and BatchNorm's statistics never are.

    The file appears whole or not at all. Whoever reads it draws the other rows from a fixed seed: a word
    outside `rows` loses its trained value.
    """
    # safetensors wants plain layout; the model may be channels_last
    tensors = {name: value.detach().cpu().contiguous() for name, value in clip.model.state_dict().items()}
    index = torch.tensor(sorted(set(rows)), dtype=torch.int64)
    tensors[_ROWS], tensors[_VALUES] = index, tensors.pop(_EMBEDDING)[index]
    if half:
        tensors = {
            name: value.half() if value.is_floating_point() and value.ndim > 1 else value
            for name, value in tensors.items()
        }
    write_bytes(path, save(tensors, metadata={"format": "pt"}))


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return open_clip's configuration of a model, and Clip's own settings beside it."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model = dict(config["model_cfg"])
        statistics = _find_statistics(dict(config.get("preprocess_cfg", {})))
        settings = {"last_stride": int(config.get("last_stride", 32)), **statistics}
        text = dict(model.get("text_cfg", {}))
        fetched = [key for key in ("hf_model_name",) if key in text]
        fetched += [key for key in ("timm_model_pretrained",) if dict(model.get("vision_cfg", {})).get(key)]
        fetched += sorted(dict(text.get("tokenizer_kwargs") or {}).keys() - {"clean", "strip_sep_token"})
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RisError(f'{path}: missing, or not open_clip\'s {{"model_cfg": {{…}}}} ({error})') from error
    if fetched:  # a file from elsewhere must not decide what is downloaded or run
        raise RisError(f"{path}: {fetched[0]}: asks for what is not in the folder; only open_clip's encoders are read")
    return model, settings


def _load_tokenizer(config: Mapping[str, Any], source: str) -> HFTokenizer | None:
    """Return open_clip's tokenizer of a model by its name or folder, None for CLIP's BPE.

    Raises DownloadError where it is neither in the folder nor on this machine nor can be fetched.
    """
    text = dict(config.get("text_cfg", {}))
    if not text.get("hf_tokenizer_name") or text.get("hf_model_name"):  # the latter is refused by Clip
        return None
    import_transformers()
    try:
        return cast(HFTokenizer, open_clip.get_tokenizer(source))
    except Exception as error:  # whatever the network, the hub, the disk or the tokenizer's files may raise
        reason = str(error).partition("\n")[0][:120]
        raise DownloadError(f"the tokenizer of {source} is not here ({reason}): give a folder that holds it") from error


def _find_statistics(preprocessing: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Return the mean and std of open_clip's preprocessing, of three numbers each, where it has them."""
    found = {name: tuple(map(float, preprocessing[name])) for name in ("mean", "std") if preprocessing.get(name)}
    if any(len(values) != 3 for values in found.values()):
        raise ValueError("mean and std must have three values")
    return found


def _find_config(name: str) -> dict[str, Any]:
    known = ["shapes", *open_clip.list_models()]
    if name not in known:
        raise RisError(f"{name}: neither a CLIP that open_clip knows nor a folder{did_you_mean(name, known)}")
    return dict(open_clip.get_model_config(name))


def _download(name: str, tag_name: str, tag: dict[str, Any], config: Mapping[str, Any]) -> Path:
    """Return the file of a tag; what it is, how large and from where is said before it is fetched."""
    source, kept, is_here = _find_source(tag)
    if not (is_here or huggingface_hub.constants.HF_HUB_OFFLINE):
        with torch.device("meta"):
            n_bytes = sum(4 * parameter.numel() for parameter in Clip.from_config(config).parameters())
        size = format_size(n_bytes)
        Console().say(f"fetching weights {tag_name} of {name}, up to {size}, from {source}; they are kept in {kept}")
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # whatever the network, the hub or the disk may raise
        raise DownloadError(
            f"weights {tag_name} of {name} did not download from {source} ({error}): give a local file"
        ) from error


def _find_source(tag: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Return where open_clip fetches the file of a tag, the folder where it is kept, and whether it is there."""
    repository, file = os.path.split(tag.get("hf_hub", ""))
    if repository:
        names = [file] if file else [_HUB_WEIGHTS, _OLD_HUB_WEIGHTS]
        is_here = any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in names)
        return f"https://huggingface.co/{repository}", huggingface_hub.constants.HF_HUB_CACHE, is_here
    url, folder = tag.get("url", ""), Path.home() / ".cache" / "clip"
    return url, str(folder), "file" in tag or (folder / url.rpartition("/")[2]).is_file()


def _build(config: dict[str, Any], weights: Weights, file: Path, n_tokens: int | None, **settings: Any) -> Clip:
    quick_gelu = bool(config.get("quick_gelu")) or weights.is_openai
    clip = Clip.from_config(config | {"quick_gelu": quick_gelu}, n_tokens, **settings)
    copy_tensors(clip.model, weights.tensors, file)
    return clip


def _holds_half_values(tensors: dict[str, Tensor]) -> bool:
    matrices = [value for name, value in tensors.items() if name.endswith("attn.in_proj_weight")]
    return bool(matrices) and all(bool((m == m.half().to(m.dtype)).all()) for m in matrices)


def _expand_embedding(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if _ROWS not in tensors:
        return tensors
    rows, values = tensors.pop(_ROWS), tensors.pop(_VALUES)
    embedding = torch.empty(VOCABULARY_SIZE, values.shape[1])
    embedding.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    if rows.shape != values.shape[:1] or rows.min() < 0 or rows.max() >= VOCABULARY_SIZE:
        raise ValueError(f"{_ROWS} and {_VALUES} do not fit each other")
    embedding[rows] = values.float()
    return tensors | {_EMBEDDING: embedding}


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
