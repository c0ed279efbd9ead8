"""Threads that read what comes next while the caller computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ris_pipeline.process.workers import count_cores

T = TypeVar("T")
R = TypeVar("R")

MOST_THREADS = 8  # more wait for each other's turn at the interpreter


def run_ahead(function: Callable[[T], R], items: Iterable[T], n_ahead: int) -> Generator[R]:
    """Yield function(item) for all items, in their order, made by threads up to `n_ahead` items before its turn.

    For functions that read and decode files; not for torch, which would start a team of threads for each of these.
    `items` is read in the caller's thread, no farther than that. What the function raises is raised at its item's
    turn. Close the generator (`contextlib.closing`) to end the threads.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(min(count_cores(), MOST_THREADS, n_ahead), thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > n_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
