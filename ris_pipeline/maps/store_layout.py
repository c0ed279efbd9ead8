"""The metadata of a response store, checked before Zarr reads it.

Metadata say which codecs run and how much memory an array takes, and a store may come from elsewhere. So what is not
exactly the layout of `responses` is refused: other arrays, types, chunks or codecs, sizes beyond the limits.
"""

from pathlib import Path
from typing import Any

from ris_pipeline.datasets.io.files import load_json
from ris_pipeline.errors import RisError

BLOCK = 1024  # rows of a chunk
MAX_SENTENCES = 2**24  # a hundred times the largest known data set; 128 MB of ids
MAX_SIDE = 256  # of a score grid; a block of the largest takes 256 MB

_BYTES = ({"name": "bytes"}, {"name": "bytes", "configuration": {"endian": "little"}})
_KEYS = ({"name": "default", "configuration": {"separator": "/"}}, {"name": "default"})
_EMPTY = {"attributes": "{}", "dimension_names": "None", "storage_transformers": "[]"}  # where they are given


def check_layout(path: Path) -> None:
    """None where the metadata at `path` are those of a response store; else RisError naming the file."""
    _check_group(path / "zarr.json")
    logits = load_json(path / "logits" / "zarr.json")
    shape: Any = logits.get("shape") if isinstance(logits, dict) else None
    if not _is_shape(shape) or not 0 <= shape[0] <= MAX_SENTENCES or not all(1 <= n <= MAX_SIDE for n in shape[1:]):
        raise _refuse(
            path / "logits" / "zarr.json", "shape", f"not (N, h, w) of at most {MAX_SENTENCES} and {MAX_SIDE}"
        )
    n, h, w = shape
    rows = max(n, 1)
    _check_array(path / "logits", [n, h, w], [BLOCK, h, w], "float32", "NaN")
    _check_array(path / "prms_score", [n], [BLOCK], "float32", "NaN")
    _check_array(path / "selected", [n], [rows], "bool", False)
    _check_array(path / "sent_id", [n], [rows], "int64", 0)
    _check_array(path / "ref_id", [n], [rows], "int64", 0)
    _check_array(path / "image_hw", [n, 2], [rows, 2], "int32", 0)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)


def _check_group(file: Path) -> None:
    metadata = load_json(file)
    if not isinstance(metadata, dict) or metadata.get("node_type") != "group" or metadata.get("zarr_format") != 3:
        raise _refuse(file, "node_type", "not a Zarr v3 group")
    if metadata.get("consolidated_metadata") is not None:
        raise _refuse(file, "consolidated_metadata", "must not be given")
    attributes = metadata.get("attributes")
    if not isinstance(attributes, dict):
        raise _refuse(file, "attributes", "must be a table")
    size = attributes.get("input_size")
    if type(size) is not int or not 1 <= size <= 2**14:
        raise _refuse(file, "input_size", "must be a number of pixels")


def _check_array(folder: Path, shape: list[int], chunks: list[int], dtype: str, fill: Any) -> None:
    file = folder / "zarr.json"
    metadata = load_json(file)
    if not isinstance(metadata, dict):
        raise _refuse(file, "node_type", "not a Zarr array")
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "fill_value": fill,
    }
    for key, value in expected.items():
        # repr tells 0 from false, which are equal in Python.
        if repr(metadata.get(key)) != repr(value):
            raise _refuse(file, key, f"must be {value}")
    if metadata.get("chunk_key_encoding") not in _KEYS:
        raise _refuse(file, "chunk_key_encoding", "must be the default")
    if not _are_codecs(metadata.get("codecs")):
        raise _refuse(file, "codecs", "must be bytes and zstd with checksum")
    for key in metadata.keys() - expected.keys() - {"chunk_key_encoding", "codecs"}:
        if repr(metadata[key]) != _EMPTY.get(key):
            raise _refuse(file, key, "is not of this layout")


def _are_codecs(codecs: Any) -> bool:
    if not isinstance(codecs, list) or len(codecs) != 2 or codecs[0] not in _BYTES or not isinstance(codecs[1], dict):
        return False
    settings = codecs[1].get("configuration")
    return (
        codecs[1].keys() == {"name", "configuration"}
        and codecs[1]["name"] == "zstd"
        and isinstance(settings, dict)
        and settings.keys() == {"level", "checksum"}
        and type(settings["level"]) is int
        and 1 <= settings["level"] <= 22
        and settings["checksum"] is True
    )


def _refuse(file: Path, key: str, what: str) -> RisError:
    return RisError(f"{file}: {key}: {what}; not the responses of `ris dump-responses`, make them anew with --force")
