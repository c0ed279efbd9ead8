"""Items made by threads ahead of their turn: order, how far ahead, errors, the end."""

import threading
import time
from contextlib import closing

import pytest

from ris_pipeline.process.ahead import run_ahead


def list_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_results_keep_the_order_whichever_is_ready_first():
    def work(i):
        time.sleep(0.02 if i % 3 == 0 else 0)
        return threading.current_thread().name, -i

    found = list(run_ahead(work, range(20), 4))
    assert [value for _, value in found] == [-i for i in range(20)]
    assert threading.current_thread().name not in {name for name, _ in found}
    assert not list_threads()


def test_no_more_is_taken_than_was_allowed():
    taken = []
    items = (taken.append(i) or i for i in range(100))
    with closing(run_ahead(str, items, 3)) as results:
        assert next(results) == "0"
        assert taken == [0, 1, 2, 3]
        assert next(results) == "1"
        assert taken == [0, 1, 2, 3, 4]
    assert not list_threads()


def test_the_next_items_are_made_while_the_caller_computes():
    made = threading.Semaphore(0)
    with closing(run_ahead(lambda i: made.release(), range(10), 3)) as results:
        next(results)
        assert all(made.acquire(timeout=10) for _ in range(4))


def test_an_error_comes_at_its_items_turn():
    results = run_ahead(lambda i: 1 / (3 - i), range(10), 5)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not list_threads()


def test_nothing_to_do():
    assert list(run_ahead(str, [], 3)) == []
