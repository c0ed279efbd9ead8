"""One writer per artifact."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ris_pipeline.errors import RisError

PATIENCE = 0.5  # seconds; longer than a clean-up holds the lock of a dead process
_held: set[int] = set()


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Holds the lock file `path` while the block runs and removes it afterwards.

    The kernel frees the lock when its holder dies, so a file left by a killed process locks nobody out.
    Raises RisError naming host and process where somebody else holds it, and where its folder is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, time.monotonic() + PATIENCE)
    except OSError as error:
        raise RisError(f"{path.parent}: cannot write there: {error.strerror}; choose another folder") from error
    _held.add(descriptor)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        # Removed before it is freed: whoever locks the old file meanwhile notices in _acquire.
        path.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)


def holder_of(path: Path) -> str | None:
    """Process and host that hold the lock file `path`, as they wrote into it; None where nobody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        # For an instant and shared: whoever wants to write meanwhile has more patience.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(descriptor)


def _acquire(path: Path, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(descriptor, path):
                return descriptor
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise RisError(f"{path}: cannot lock: {error.strerror}; put --runs on another disk") from error
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise RisError(f"{path}: being written by {holder or 'another process'}; wait or stop it") from error
            time.sleep(PATIENCE / 10)
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    # A forked process that outlives its parent must not keep the parent's locks.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
