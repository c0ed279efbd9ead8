"""Publishing: an artifact is written beside its place and found there once it is whole, on the disk and sealed."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.files import (
    describe_files,
    fsync_path,
    fsync_tree,
    make_folder,
    remove_unfinished,
    replace_folder,
    restore_folder,
    write_json,
)
from ris_pipeline.artifacts.find import find, load_artifact
from ris_pipeline.artifacts.identity import Artifact, Request, label_of, with_checksum
from ris_pipeline.artifacts.layout import (
    FILES,
    IRNET_WEIGHTS,
    MANIFEST,
    RECORDS,
    RESUME,
    STAGES,
    TRAINING_LOG,
    UNLISTED,
    latest_name,
)
from ris_pipeline.artifacts.locks import hold
from ris_pipeline.errors import MadeMeanwhileError, RisError
from ris_pipeline.process.failures import explained
from ris_pipeline.process.packages import find_version

_IRNET_FILES = {IRNET_WEIGHTS, TRAINING_LOG}  # of pseudolabels
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "zarr", "numpy", "scipy", "opencv-python", "pillow")


@dataclass(slots=True)
class Work:
    """An artifact being written; its stage fills `counts`, `timings` and `host`, which the manifest keeps."""

    path: Path
    resumed: bool  # the folder holds what an earlier run left
    counts: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)  # seconds
    host: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to `timings[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = round(self.timings.get(name, 0.0) + time.perf_counter() - start, 3)


@contextmanager
def publish(request: Request, *, force: bool = False) -> Iterator[Work]:
    """Yield the folder to write the artifact of `request` in; after the block it is found under its own name.

    An exception leaves the folder as it is, for the next run to resume, unless it is empty; with `force` it is empty
    at the start. Raises RisError where another process writes the same artifact, and, without `force`,
    MadeMeanwhileError where the artifact is there already and no run of it has broken off.
    """
    with hold(request.lock):
        if force:
            shutil.rmtree(request.partial, ignore_errors=True)
        resumed = request.partial.exists()
        # Looked at again: between the first look and the lock another process may have finished it.
        if not force and not resumed and (made := find(request)) is not None:
            if request.becomes_latest:
                point_latest(made)
            raise MadeMeanwhileError(f"{made.name}: up to date, another process has just made {made.digest}")
        with explained(request.partial, _memory_settings(request)):
            make_folder(request.partial)
            remove_unfinished(request.partial)
            for name in RECORDS:  # of a run that died just before its last step
                (request.partial / name).unlink(missing_ok=True)
            work = Work(request.partial, resumed)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                with work.timed("total"):
                    yield work
            except BaseException:
                with suppress(OSError):  # it holds something
                    request.partial.rmdir()
                raise
            _seal(request, work, started)
            replace_folder(request.path, request.partial)
            # Not before: until then a run that is killed goes on from it.
            (request.path / RESUME).unlink(missing_ok=True)
    if request.becomes_latest:
        point_latest(Artifact(request.path, request.identity))


def withdraw(folder: Path, damaged: Iterable[str]) -> None:
    """Turn a finished artifact into what a broken run leaves, without its damaged files, so that its stage resumes.

    Raises RisError where a broken run has left something already.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        raise RisError(f"{partial}: a run broke off there; run its command first, or delete the folder")
    folder.rename(partial)
    names = set(damaged)
    if names & _IRNET_FILES:  # one training leaves both
        names |= _IRNET_FILES
    for name in names:
        (partial / name).unlink(missing_ok=True)


def remove_leftovers(request: Request) -> None:
    """Remove what killed runs of the stage left: locks, half-made links, replaced artifacts, used checkpoints.

    What can be resumed stays, and so does what a living process holds.
    """
    folder = request.path.parent
    for link in folder.glob(".latest*"):
        link.unlink(missing_ok=True)
    for checkpoint in folder.glob(f"{'[0-9a-f]' * 12}/{RESUME}"):
        checkpoint.unlink(missing_ok=True)
    for lock in folder.glob("*.lock"):
        with suppress(RisError), hold(lock):
            restore_folder(lock.with_suffix(""))


def _memory_settings(request: Request) -> str:
    values = [
        f"{key} (now {request.configuration[key]})"
        for key in STAGES[request.stage].memory
        if key in request.configuration
    ]
    return " or ".join([*values, "--workers"])


def point_latest(artifact: Artifact) -> None:
    """Point the link `latest`, or `latest-<label>` for an artifact with flags, to `artifact`.

    A variant never becomes the plain `latest`: what reads `step1` would take another method's network for it.
    """
    link = artifact.path.with_name(latest_name(label_of(artifact.manifest["flags"])))
    # Left alone where it is right: runs that are up to date may lie where nobody may write.
    if link.is_symlink() and link.readlink() == Path(artifact.path.name):
        return
    if link.is_dir() and not link.is_symlink():
        _restore_name(link)
    _replace_link(link, artifact.path.name)


def _restore_name(copy: Path) -> None:
    """Make way where a copy of the runs has a folder in place of a link: it is the artifact, or one more copy of it."""
    own = load_artifact(copy)
    name = copy.with_name(own.digest) if own is not None else None
    if name is None or name.exists():
        shutil.rmtree(copy)
    else:
        copy.rename(name)


def _replace_link(link: Path, target: str) -> None:
    # A rename is atomic, a symlink over an existing one is not possible.
    new = link.with_name(f".{link.name}.{os.getpid()}")
    for is_last in (False, False, True):
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        try:
            new.rename(link)
            break
        except FileNotFoundError:  # another process took it for a leftover
            if is_last:
                raise
    fsync_path(link.parent)


def _seal(request: Request, work: Work, started: str) -> None:
    remove_unfinished(work.path)
    fsync_tree(work.path)
    files = describe_files(work.path, leave_out=UNLISTED)
    write_json(work.path / FILES, files)
    sha256 = hashlib.sha256((work.path / FILES).read_bytes()).hexdigest()
    host = {"name": platform.node(), "system": platform.platform(), "python": platform.python_version()}
    manifest: dict[str, Any] = {
        **request.identity,
        "chosen": dict(request.chosen),
        "counts": work.counts,
        "timings": work.timings,
        "started": started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": work.resumed,
        "host": {**host, "cpus": os.cpu_count(), **work.host},
        "libraries": {name: find_version(name) for name in _LIBRARIES},
        "files": {"count": len(files), "bytes": sum(entry["bytes"] for entry in files.values()), "sha256": sha256},
    }
    write_json(work.path / MANIFEST, with_checksum(manifest))
