"""Worker processes that end with their parent, however that ends.

Nothing here imports torch: a worker process starts in a fraction of a second.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from ris_pipeline.process import signals as stops


class _Pool(ProcessPoolExecutor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # Starts processes. They do not see the Ctrl-C of a terminal, which is sent to all of its processes.
        with stops.blocked():
            return super().submit(function, *args, **kwargs)


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes. Where the block raises, or this process is killed, they end at once."""
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    # A new process reads it when it loads NumPy; with a thread per core in each, the workers would fight over them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    pool = _Pool(workers, mp_context=context, initializer=_start, initargs=(theirs,))
    try:
        yield pool
        pool.shutdown()
    except Exception:
        stops.check()  # a signal that ended the workers was meant for all of us
        raise
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def _start(parent: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops.SIGNALS)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """Ends this process when the parent's end of the pipe is closed, by the parent or by its death."""
    try:
        parent.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
