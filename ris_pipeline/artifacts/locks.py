"""One writer per artifact."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ris_pipeline.errors import BusyError, RisError

PATIENCE = 0.5  # seconds; longer than a clean-up holds the lock of a dead process


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs and remove it afterwards.

    The kernel frees the lock when its holder dies, so a file left by a killed process locks nobody out.
    Raises BusyError naming host and process where somebody else holds it, RisError where its folder is not writable.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise BusyError(f"{path}: being written by {read_holder(path)}; wait or stop it") from error
    except OSError as error:
        raise RisError(f"{path.parent}: cannot write there: {error.strerror}; choose another folder") from error
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        # Removed before it is freed: who locks the removed file meanwhile notices and tries again.
        path.unlink(missing_ok=True)
        lock.release()


def holder_of(path: Path) -> str | None:
    """Return process and host that hold the lock file `path`, as they wrote into it; None where nobody holds it."""
    try:
        with path.open() as file:
            # Shared and for an instant: who wants to write meanwhile has more patience. Works where one may only read.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_holder(path)
    except OSError:
        pass
    return None


def read_holder(path: Path) -> str:
    """Return what the last process that held the lock file `path` wrote into it: its number and host."""
    try:
        return path.read_text(errors="replace").strip() or "another process"
    except OSError:  # it has just ended
        return "another process"
