"""SIGINT and SIGTERM: a run ends at a point from which the next one can go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Somebody asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Asked:
    number: int | None = None  # of the signal that came
    is_deferred = False
    keeps_waiting = False  # at a second signal as well


_asked = _Asked()


@contextmanager
def watch_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped inside the block: at once, or as `deferred` says."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.number = None
    before = {number: signal.signal(number, _ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.number = None


@contextmanager
def deferred(*, second_too: bool = False) -> Iterator[None]:
    """A signal waits for the end of the block, which looks at `asked`; a second one waits only for `second_too`."""
    before = _asked.is_deferred, _asked.keeps_waiting
    _asked.is_deferred, _asked.keeps_waiting = True, second_too
    try:
        yield
    finally:
        _asked.is_deferred, _asked.keeps_waiting = before
    check()


def check() -> None:
    """Raises Stopped if somebody asked this process to stop, except inside `deferred`.

    To be called now and then: what a signal raises in the middle of __del__ and the like, Python drops.
    """
    if _asked.number is not None and not _asked.is_deferred:
        raise Stopped(_asked.number)


def asked() -> int | None:
    """The signal by which somebody asked this process to stop."""
    return _asked.number


@contextmanager
def blocked() -> Iterator[None]:
    """Signals wait for the end of the block; a process that is started inside keeps them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(number: int, _: FrameType | None) -> None:
    waits = _asked.is_deferred and (_asked.number is None or _asked.keeps_waiting)
    _asked.number = number
    if not waits:
        raise Stopped(number)
