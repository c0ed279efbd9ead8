"""Files and folders that are whole or absent, also after a power cut."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as indented JSON: on the disk, all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_folder(path.parent)


def describe_files(folder: Path, *, leave_out: Collection[str] = (), fsync: bool = False) -> dict[str, dict[str, Any]]:
    """{path relative to `folder`: {"bytes", "sha256"}} of its files, which `fsync` brings to the disk."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            if fsync:
                fsync_folder(path)
        elif path.relative_to(folder).as_posix() not in leave_out:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                if fsync:
                    os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256}
    return files


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
