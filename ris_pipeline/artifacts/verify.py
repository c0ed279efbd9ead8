"""Which files of an artifact are not what was published.

The manifest has a checksum of itself and that of files.json, which has one of every other file: no byte of an artifact
is outside of them. The folder's name is not part of it: an artifact may be copied and renamed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import describe_files
from ris_pipeline.artifacts.identity import parse_manifest
from ris_pipeline.artifacts.layout import FILES, MANIFEST, UNLISTED
from ris_pipeline.errors import RisError

MISSING, UNREADABLE, CHANGED = "missing", "cannot be read", "not the bytes that were published"
SURPLUS = "not part of what was published; remove it"


@dataclass(frozen=True, slots=True)
class Damage:
    """One file of an artifact that is not what was published."""

    file: str  # relative to the artifact's folder
    fault: str

    def __str__(self) -> str:
        """Return one line: the file, and what is wrong with it."""
        return f"{self.file}: {self.fault}"


def find_damage(folder: Path) -> list[Damage]:
    """Return what is damaged in the artifact, by file name; empty where no byte of it has changed.

    Where the manifest or files.json is damaged, nothing else can be judged.
    """
    try:
        name = MANIFEST
        sha256 = parse_manifest((folder / MANIFEST).read_bytes())["files"]["sha256"]
        name = FILES
        data = (folder / FILES).read_bytes()
    except FileNotFoundError:
        return [Damage(name, MISSING)]
    except OSError:
        return [Damage(name, UNREADABLE)]
    except (ValueError, RecursionError):
        return [Damage(name, CHANGED)]
    if hashlib.sha256(data).hexdigest() != sha256:
        return [Damage(FILES, CHANGED)]
    recorded: dict[str, Any] = json.loads(data)
    found = describe_files(folder, leave_out=UNLISTED, tolerant=True)
    damages = []
    for file in sorted(recorded.keys() | found.keys()):
        if file not in recorded:
            damages.append(Damage(file, SURPLUS))
        elif file not in found:
            damages.append(Damage(file, MISSING))
        elif found[file] != recorded[file]:
            damages.append(Damage(file, CHANGED if found[file] else UNREADABLE))
    return damages


def check_whole(folder: Path) -> None:
    """Raise RisError, naming the first, where files of the artifact are not as published."""
    damages = find_damage(folder)
    if damages:
        more = f" and {len(damages) - 3} more files" if len(damages) > 3 else ""
        first = "; ".join(map(str, damages[:3]))
        raise RisError(f"{folder}: damaged: {first}{more}; `ris status --repair` mends what can be mended")
