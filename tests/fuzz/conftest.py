"""What every fuzzed reader is watched for: errors of its own, time, memory, and what it executes or writes."""

import codecs
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ris_pipeline.errors import RisError

SECONDS = 5.0  # of CPU time, for one input
BYTES = 3 * 2**30  # address space that one process may take beyond what it has at the beginning

_EXECUTES = (
    "exec", "compile", "import", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen",
    "socket.connect", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen", "marshal.loads", "code.__new__",
)  # fmt: skip
_WRITES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "shutil.rmtree", "shutil.copyfile", "shutil.move",
)  # fmt: skip
_watching = False
_seen: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in _EXECUTES or event in _WRITES:
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _seen.append(f"open {path!r} {mode} {flags}")


sys.addaudithook(_audit)
for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "latin-1"):
    codecs.lookup(encoding)  # imports its module, which json would do later


@contextmanager
def watched() -> Iterator[list[str]]:
    """Gathers what the block executes and writes, by Python's audit events."""
    global _watching
    _seen.clear()
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False


def _stop(*_: object) -> None:
    raise TimeoutError(f"no end after {4 * SECONDS:.0f} s")


@pytest.fixture(scope="session")
def survives() -> Callable[[Callable[[], object]], str | None]:
    """A function that runs a reader on one input: None if that is well, else what it did instead.

    Well is an answer, or a RisError of one line, within SECONDS, with nothing executed and nothing written.
    """

    def run(read: Callable[[], object]) -> str | None:
        start = time.process_time()
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)
        fault = None
        try:
            with watched() as events, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except RisError as error:
            if "\n" in str(error):
                fault = f"a message of several lines: {error}"
        except BaseException as error:  # also what Rust code panics with
            if isinstance(error, KeyboardInterrupt):
                raise
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
            fault = f"{type(error).__name__} at {where}: {error!s:.200}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if fault is None and events:
            fault = f"did {events[0]}"
        if fault is None and time.process_time() - start > SECONDS:
            fault = f"took {time.process_time() - start:.1f} s"
        return fault

    return run


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """An input that makes a reader take gigabytes is a MemoryError here, not the end of the machine."""
    import torch  # noqa: F401 - maps gigabytes that no input asked for

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
