"""Files and folders that are whole or absent, also after a power cut."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = (".new", ".partial")  # how the names of unfinished files end: of this project, and of Zarr


@contextmanager
def replacing(path: Path, *, fsync: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` after the block: all of it or, where the block raises, nothing.

    Without `fsync` a power cut may leave an empty file of that name; a killed process never does.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if fsync:
        fsync_path(path.parent)


def render_json(value: Any) -> str:
    """Return `value` as indented JSON, the same text for the same value."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON: on the disk, all of it or none."""
    write_bytes(path, render_json(value).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`: on the disk, all of it or none."""
    with replacing(path) as file:
        file.write(data)


def remove_unfinished(folder: Path) -> None:
    """Remove from `folder` and its subfolders the files that killed processes had not finished."""
    for path in [path for path in folder.rglob("*") if path.name.endswith(UNFINISHED)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def describe_files(folder: Path, *, leave_out: Collection[str], tolerant: bool = False) -> dict[str, dict[str, Any]]:
    """Return {path relative to `folder`: {"bytes", "sha256"}} of its files.

    Raises OSError at a file that cannot be read; `tolerant` gives {} for it.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in leave_out:
            try:
                files[name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
            except OSError:
                if not tolerant:
                    raise
                files[name] = {}
    return files


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(old: Path, new: Path) -> None:
    """Rename the folder `new` to `old` and delete what `old` held. restore_folder mends a crash in between."""
    trash = old.with_name(f"{old.name}.old")
    shutil.rmtree(trash, ignore_errors=True)
    # A rename does not overwrite a folder that holds something.
    if old.exists():
        old.rename(trash)
    new.rename(old)
    fsync_path(old.parent)
    shutil.rmtree(trash, ignore_errors=True)


def restore_folder(old: Path) -> None:
    """Clear up after a replace_folder that was killed: `old` comes back unless `new` has taken its place."""
    trash = old.with_name(f"{old.name}.old")
    if trash.exists() and not old.exists():
        trash.rename(old)
    shutil.rmtree(trash, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, and bring their names to the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_path(path.parent)


def fsync_tree(folder: Path) -> None:
    """Bring the files and names in `folder` and its subfolders to the disk."""
    for path in (folder, *folder.rglob("*")):
        fsync_path(path)


def fsync_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
