"""Faults of the machine in a long run, each explained by one line: what it is, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from ris_pipeline.errors import RisError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
# torch, safetensors and OpenCV tell only by the text of the error.
_MEMORY_WORDS = ("can't allocate memory", "out of memory", "Insufficient memory", "Failed to allocate", "bad alloc")
_SPACE_WORDS = ("No space left on device", "Disk quota exceeded")
_SHARED_WORDS = ("shared memory",)  # before _SPACE_WORDS, which its error holds as well
_LOADER_WORDS = ("DataLoader worker",)
_PEER_WORDS = ("/gloo/", "NCCL")
_PEER_TYPES = ("DistNetworkError", "DistStoreError")  # of the store at which they meet


@contextmanager
def explained(folder: Path, lower: str) -> Iterator[None]:
    """Turn an error of the machine (disk full, out of memory, killed worker) in the block into a RisError.

    `folder`: named if the error has no path. `lower`: the settings to reduce when memory runs out.
    """
    try:
        yield
    except Exception as error:
        line = explain_failure(error, folder, lower)
        if line is None:
            raise
        raise RisError(line) from error


def explain_failure(error: Exception, folder: Path | None = None, lower: str = "--workers") -> str | None:
    """Return one line on an error of the machine, None for any other error. Arguments as in `explained`."""
    text = str(error)
    if isinstance(error, ImportError) and "libGL" in text:
        return (
            "OpenCV needs the system's libGL, which is missing: install it (Debian: apt-get install libgl1), or take "
            "the build without it: pip uninstall opencv-python && pip install opencv-python-headless"
        )
    again = "then run the same command to go on"
    if isinstance(error, MemoryError) or _has(text, _MEMORY_WORDS) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({_first_line(error)}); lower {lower}"
    if _has(text, _SHARED_WORDS):
        return (
            "shared memory (/dev/shm), through which readers pass their batches, is full; start the container with "
            f"more (docker: --shm-size=1g) or read without other processes (--workers 0), {again}"
        )
    if isinstance(error, BrokenProcessPool) or _has(text, _LOADER_WORDS):
        return f"a worker process was killed, probably for lack of memory; lower --workers or free memory, {again}"
    if _has(text, _PEER_WORDS) or type(error).__name__ in _PEER_TYPES:
        return f"another process of torchrun ended; if nothing above says why, look for what killed it, {again}"
    if _has(text, _SPACE_WORDS) or (isinstance(error, OSError) and error.errno in _NO_SPACE):
        return f"{_place(error, folder)}: the disk is full; free some space, {again}"
    if isinstance(error, OSError) and error.errno in _NO_ACCESS:
        return f"{_place(error, folder)}: {error.strerror}; check its permissions, {again}"
    if isinstance(error, OSError) and error.errno == errno.EIO:
        return f"{_place(error, folder)}: the disk reports an error; check the disk, {again}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many open files; raise the limit (ulimit -n) or lower --workers, {again}"
    return None


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word.lower() in text.lower() for word in words)


def _place(error: Exception, folder: Path | None) -> str:
    return str(getattr(error, "filename", None) or folder or "disk")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
