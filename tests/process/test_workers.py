import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from ris_pipeline.process.failures import explain_failure
from ris_pipeline.process.workers import process_pool


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


def test_results_come_back():
    with process_pool(1) as pool:
        assert pool.submit(sum, [1, 2]).result() == 3


def test_an_error_in_the_block_does_not_wait_for_the_workers():
    pids = []
    with pytest.raises(ZeroDivisionError), process_pool(1) as pool:
        fail_beside(pool, pids)
    wait_until_gone(*pids)


def fail_beside(pool, pids):
    pids.append(pool.submit(os.getpid).result())
    pool.submit(time.sleep, 400)  # longer than the test may take
    raise ZeroDivisionError


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see what still lives")
def test_workers_end_with_a_parent_that_is_killed():
    code = """
import os, time
from ris_pipeline.process.workers import process_pool
if __name__ == "__main__":
    with process_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60).result()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.kill()
        wait_until_gone(worker)


def test_a_killed_worker_is_told_in_one_line():
    with pytest.raises(BrokenProcessPool) as error, process_pool(1) as pool:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()
    assert explain_failure(error.value) == (
        "a worker process was killed, most likely for want of memory; lower --workers or free memory, "
        "then run the same command to go on"
    )
