"""SIGINT and SIGTERM: the first signal stops a run so that it can be resumed, a second one kills it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: int | None = None  # the signal that came
_is_deferred = False


class Stopped(KeyboardInterrupt):
    """Somebody asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def watch_signals() -> Iterator[None]:
    """Raise Stopped in the block at SIGINT and SIGTERM: at once, or at the end of `deferred`."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = None
    before = {number: signal.signal(number, _ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = None


@contextmanager
def deferred() -> Iterator[None]:
    """Defer signals to the end of the block, which may look at `asked` after each of its steps."""
    global _is_deferred
    _is_deferred = True
    try:
        yield
    finally:
        _is_deferred = False
    check()


def check() -> None:
    """Raise Stopped if somebody asked this process to stop, except inside `deferred`.

    To be called now and then, because Python drops what a signal raises in the middle of __del__.
    """
    if _asked is not None and not _is_deferred:
        raise Stopped(_asked)


def asked() -> int | None:
    """Return the signal by which somebody asked this process to stop."""
    return _asked


def _ask(number: int, _: FrameType | None) -> None:
    global _asked
    _asked = number
    # A second signal kills: files are whole or absent at any time. Under torchrun it is ignored: the batch system and
    # torchrun may both send the first, and torchrun kills a process that is too slow.
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL if is_alone else signal.SIG_IGN)
    check()
