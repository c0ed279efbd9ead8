"""Worker processes that end with their parent, however it ends.

Nothing here imports torch: a worker process starts in a fraction of a second.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import starmap
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from ris_pipeline.process.signals import SIGNALS

R = TypeVar("R")


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Processes beside this one, unless told otherwise: as many as it has cores, of which torchrun's processes have a part.
WORKERS = max(2, min(8, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def map_processes(function: Callable[..., R], calls: Iterable[tuple[Any, ...]], workers: int) -> Generator[R]:
    """Yield function(*arguments) for all `calls`, in their order, computed by `workers` processes; 0: by this process.

    `calls` is read a few at a time, so memory does not grow with their number. Close the generator
    (`contextlib.closing`) to end the processes at once; the death of this process does the same. An error in a worker
    is raised here.
    """
    if workers == 0:
        yield from starmap(function, calls)
        return
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    # Read by a new process when it loads NumPy: with a thread per core in each, the workers would fight over the cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_watch, initargs=(theirs,))
    waiting: deque[Future[R]] = deque()
    try:
        for arguments in calls:
            waiting.append(_submit(pool, function, arguments))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def _submit(pool: ProcessPoolExecutor, function: Callable[..., R], arguments: tuple[Any, ...]) -> Future[R]:
    # May start processes. They inherit blocked signals, as a terminal sends Ctrl-C to them too: the pipe ends them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return pool.submit(function, *arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(parent: Connection) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """End this process when the parent's end of the pipe is closed, by the parent or by its death."""
    try:
        parent.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
