"""CLIP by name: from open_clip's downloads, from local files, or the small one that is shipped.

Which activation: weights trained with QuickGELU give wrong features under GELU, without any error.

- A tag that open_clip downloads knows its own.
- A local file that shows to be OpenAI's (a TorchScript archive, or their size entries) gets QuickGELU.
- Any other local file gets what the name says: "RN50-quickgelu" or "RN50". Under a plain name it is refused
  where its matrices hold half-precision values only, as all copies of OpenAI's do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save
from torch import Tensor

from ris_pipeline.artifacts.files import write_bytes
from ris_pipeline.artifacts.layout import CLIP_CONFIG, WEIGHTS
from ris_pipeline.config import N_TOKENS
from ris_pipeline.errors import DownloadError, RisError, did_you_mean
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.weights.extra import import_transformers
from ris_pipeline.networks.weights.tensors import EMBEDDING, ROWS, VALUES, Weights, copy_tensors, read_weights
from ris_pipeline.process.console import Console
from ris_pipeline.process.units import format_size

SHAPES_CLIP = Path(__file__).parents[2] / "weights" / "shapes-clip"

_HUB_WEIGHTS = "open_clip_model.safetensors"  # as open_clip calls them on the hub
_OLD_HUB_WEIGHTS = "open_clip_pytorch_model.bin"


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
        return _build(name, config, read_weights(file), file, n_tokens, **settings)
    config = _find_config(name)
    tokenizer = _load_tokenizer(config, name)
    if weights is None:
        # The first tag's: a family has one preprocessing.
        tags = open_clip.list_pretrained_tags_by_model(name)
        statistics = _find_statistics(open_clip.get_pretrained_cfg(name, tags[0])) if tags else {}
        return _assemble(name, config, n_tokens, tokenizer=tokenizer, **statistics)
    tag = open_clip.get_pretrained_cfg(name, weights)
    if tag:
        file = _download(name, weights, tag, config)
        config["quick_gelu"] = bool(tag.get("quick_gelu"))
        return _build(name, config, read_weights(file), file, n_tokens, tokenizer=tokenizer, **_find_statistics(tag))
    file = Path(weights)
    if not file.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise RisError(f"{weights}: neither a file nor weights open_clip knows for {name} (it knows: {tags})")
    found = read_weights(file)
    if not (config.get("quick_gelu") or found.is_openai) and _holds_half_values(found.tensors):
        raise RisError(f"{file}: half-precision values as in OpenAI's weights, which need {name}-quickgelu")
    return _build(name, config, found, file, n_tokens, tokenizer=tokenizer)


def save_compact(clip: Clip, path: Path, rows: Iterable[int], *, half: bool = False) -> None:
    """Write the values of `clip` as safetensors, of the token embedding only the `rows` in use.

    `half` stores matrices and kernels in half precision; biases, scales and BatchNorm's statistics never are.

    The file appears whole or not at all. Whoever reads it draws the other rows from a fixed seed: a word
    outside `rows` loses its trained value.
    """
    # safetensors wants plain layout; the model may be channels_last
    tensors = {name: value.detach().cpu().contiguous() for name, value in clip.model.state_dict().items()}
    index = torch.tensor(sorted(set(rows)), dtype=torch.int64)
    tensors[ROWS], tensors[VALUES] = index, tensors.pop(EMBEDDING)[index]
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
            f"weights {tag_name} of {name} did not download from {source} ({error}): give a local file "
            "by clip_weights or aux_weights (docs/weights.md)"
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


def _build(
    name: str, config: dict[str, Any], weights: Weights, file: Path, n_tokens: int | None, **settings: Any
) -> Clip:
    quick_gelu = bool(config.get("quick_gelu")) or weights.is_openai
    clip = _assemble(name, config | {"quick_gelu": quick_gelu}, n_tokens, **settings)
    copy_tensors(clip.model, weights.tensors, file)
    return clip


def _assemble(name: str, config: Mapping[str, Any], n_tokens: int | None, **settings: Any) -> Clip:
    """Return `Clip.from_config`, whose errors do not know the name."""
    try:
        return Clip.from_config(config, n_tokens, **settings)
    except RisError as error:
        raise RisError(f"{name}: {error}") from error


def _holds_half_values(tensors: dict[str, Tensor]) -> bool:
    matrices = [value for name, value in tensors.items() if name.endswith("attn.in_proj_weight")]
    return bool(matrices) and all(bool((m == m.half().to(m.dtype)).all()) for m in matrices)
