"""Which files of an artifact are not what was published, and what they held.

The manifest has a checksum of itself and that of files.json, which has one of every other file: no byte of an artifact
is outside of them. The folder's name is not part of it: an artifact may be copied and renamed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import describe_files, render_json, write_bytes
from ris_pipeline.artifacts.identity import CHECKSUM, parse_manifest
from ris_pipeline.artifacts.layout import FILES, MANIFEST, MANIFEST_COPY, UNLISTED
from ris_pipeline.errors import RisError

MISSING, UNREADABLE, CHANGED = "missing", "cannot be read", "not the bytes that were published"
SURPLUS = "not part of what was published; remove it"

_BLOCK = re.compile(r"([^/]+\.zarr)/(?:logits|prms_score)/c/(\d+)[/\d]*")
_LABEL = re.compile(r"(seeds/)?(-?\d+)\.png")


@dataclass(frozen=True, slots=True)
class Damage:
    """One file of an artifact that is not what was published."""

    file: str  # relative to the artifact's folder
    fault: str
    content: str = ""  # what it holds, such as "pseudo-label of ref 12"

    def __str__(self) -> str:
        """One line: the file, what it holds, what is wrong with it."""
        return f"{self.file}{f' ({self.content})' if self.content else ''}: {self.fault}"


def find_damage(folder: Path) -> list[Damage]:
    """Return what is damaged in the artifact, by file name; empty where no byte of it has changed.

    Where manifest.json is damaged its copy is believed; where both are, nothing else can be judged.
    """
    manifest, damages = _check_manifests(folder)
    if manifest is None:
        return damages
    recorded = _load_files_json(folder, manifest)
    if recorded is None:
        return [*damages, Damage(FILES, CHANGED if (folder / FILES).exists() else MISSING)]
    found = describe_files(folder, leave_out=UNLISTED, tolerant=True)
    for file in sorted(recorded.keys() | found.keys()):
        if recorded.get(file) != found.get(file):
            fault = SURPLUS if file not in recorded else MISSING if file not in found else CHANGED
            if found.get(file) == {}:
                fault = UNREADABLE
            damages.append(Damage(file, fault, _describe(folder, str(manifest["stage"]), file)))
    return damages


def check_whole(folder: Path) -> None:
    """Raise RisError, naming the first, where files of the artifact are not as published."""
    damages = find_damage(folder)
    if damages:
        more = f" and {len(damages) - 3} more files" if len(damages) > 3 else ""
        first = "; ".join(map(str, damages[:3]))
        raise RisError(f"{folder}: damaged: {first}{more}; `ris status --repair` mends what can be mended")


def load_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact, of its copy where manifest.json is damaged; None where both are."""
    return _check_manifests(folder)[0]


def restore_records(folder: Path) -> list[str]:
    """Restores what of manifest.json, its copy and files.json follows from the others; the names of those restored.

    A restored file has the bytes that were published, or it is left as it is.
    """
    whole = [data for name in (MANIFEST, MANIFEST_COPY) if (data := _read_sealed(folder / name)) is not None]
    if not whole:
        return []
    contents = {MANIFEST: whole[0], MANIFEST_COPY: whole[0]}
    manifest = json.loads(whole[0])
    if _load_files_json(folder, manifest) is None:
        table = render_json(describe_files(folder, leave_out=UNLISTED, tolerant=True)).encode()
        if hashlib.sha256(table).hexdigest() == manifest["files"]["sha256"]:
            contents[FILES] = table
    restored = [name for name, data in contents.items() if _read(folder / name) != data]
    for name in restored:
        write_bytes(folder / name, contents[name])
    return restored


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read_sealed(path: Path) -> bytes | None:
    """The bytes of a manifest that has its checksums and agrees with its own; None for any other."""
    data = _read(path)
    try:
        manifest = parse_manifest(data or b"")
        return data if CHECKSUM in manifest and "sha256" in manifest["files"] else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _check_manifests(folder: Path) -> tuple[dict[str, Any] | None, list[Damage]]:
    """The manifest, None where neither it nor its copy is whole; and what is damaged of the two."""
    sealed = {name: _read_sealed(folder / name) for name in (MANIFEST, MANIFEST_COPY)}
    good = next((data for data in sealed.values() if data is not None), None)
    damages = [
        Damage(name, CHANGED if (folder / name).exists() else MISSING)
        for name, data in sealed.items()
        if data is None or data != good
    ]
    return None if good is None else json.loads(good), damages


def _load_files_json(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What files.json holds; None where it has not the checksum that the manifest says."""
    data = _read(folder / FILES) or b""
    expected = manifest["files"].get("sha256")
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        return None
    try:
        files = json.loads(data)
    except ValueError:
        return None
    return files if isinstance(files, dict) else None


def _describe(folder: Path, stage: str, file: str) -> str:
    """What the file of a stage holds, in words; "" where its name says all."""
    if block := _BLOCK.fullmatch(file):
        return _describe_block(folder / block[1], int(block[2]))
    if stage == "pseudolabels" and (label := _LABEL.fullmatch(file)):
        return f"{'seeds' if label[1] else 'pseudo-label'} of ref {label[2]}"
    return "weights" if file.endswith(".safetensors") else ""


def _describe_block(store: Path, block: int) -> str:
    """Block, sentences and refs; the block alone where the ids themselves are damaged."""
    import zarr

    try:
        group: Any = zarr.open_group(str(store), mode="r", zarr_format=3, use_consolidated=False)
        n_rows = group["prms_score"].chunks[0]
        rows = slice(block * n_rows, (block + 1) * n_rows)
        sent_id, ref_id = group["sent_id"][rows].tolist(), group["ref_id"][rows].tolist()
    except Exception:  # whatever the damage makes of it
        return f"block {block}"
    refs = list(dict.fromkeys(ref_id))
    sentences = f"{len(sent_id)} sentences, sent_id {sent_id[0]} to {sent_id[-1]}"
    return f"block {block}: {sentences}, of {len(refs)} refs, ref_id {refs[0]} to {refs[-1]}"
