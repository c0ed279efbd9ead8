"""Files and folders that are whole or absent, also after a power cut."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any


def render_json(value: Any) -> str:
    """`value` as indented JSON, the same text for the same value."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as indented JSON: on the disk, all of it or none."""
    write_bytes(path, render_json(value).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`: on the disk, all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_folder(path.parent)


def describe_files(
    folder: Path, *, leave_out: Collection[str] = (), fsync: bool = False, tolerant: bool = False
) -> dict[str, dict[str, Any]]:
    """{path relative to `folder`: {"bytes", "sha256"}} of its files, which `fsync` brings to the disk.

    Raises OSError at a file that cannot be read; `tolerant` gives {} for it.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if fsync:
                fsync_folder(path)
        elif name not in leave_out:
            try:
                files[name] = _describe_file(path, fsync)
            except OSError:
                if not tolerant:
                    raise
                files[name] = {}
    return files


def _describe_file(path: Path, fsync: bool) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if fsync:
            os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256}


def replace_folder(old: Path, new: Path) -> None:
    """Renames the folder `new` to `old`; what `old` held is gone."""
    trash = old.with_name(f"{old.name}.old")
    shutil.rmtree(trash, ignore_errors=True)
    # A rename does not overwrite a folder that holds something.
    if old.exists():
        old.rename(trash)
    new.rename(old)
    fsync_folder(old.parent)
    shutil.rmtree(trash, ignore_errors=True)


def fsync_folder(folder: Path) -> None:
    """Brings the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
