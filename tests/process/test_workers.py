import operator
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path

import pytest

from ris_pipeline.process.failures import explain_failure
from ris_pipeline.process.workers import map_processes


def is_alive(pid):
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until_gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_calls_and_calls_are_read_a_few_at_a_time(workers):
    n_read = 0

    def calls():
        nonlocal n_read
        for n_read in range(1, 101):
            yield n_read, 3

    with closing(map_processes(divmod, calls(), workers)) as results:
        assert next(results) == (0, 1)
        assert n_read == 4 * workers + 1
        assert list(results) == [divmod(k, 3) for k in range(2, 101)]


def test_closing_does_not_wait_for_the_workers():
    calls = iter([(os.getpid,), *[(time.sleep, 400)] * 4])  # longer than the test may take
    with closing(map_processes(operator.call, calls, 1)) as results:
        pid = next(results)
    wait_until_gone(pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see what still lives")
def test_workers_end_with_a_parent_that_is_killed():
    code = """
import operator, os, time
from ris_pipeline.process.workers import map_processes
if __name__ == "__main__":
    for pid in map_processes(operator.call, [(os.getpid,), *[(time.sleep, 400)] * 4], 1):
        print(pid, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.kill()
        wait_until_gone(worker)


def test_a_killed_worker_is_told_in_one_line():
    with pytest.raises(BrokenProcessPool) as error:
        list(map_processes(signal.raise_signal, [(signal.SIGKILL,)], 1))
    assert explain_failure(error.value) == (
        "a worker process was killed, probably for lack of memory; lower --workers or free memory, "
        "then run the same command to go on"
    )
