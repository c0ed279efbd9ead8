import os
import signal
from threading import Thread

import pytest

from ris_pipeline.process import signals as stops
from ris_pipeline.process.signals import Stopped, deferred, watch_signals


def ask(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once(number):
    before = [signal.getsignal(one) for one in stops.SIGNALS]
    with pytest.raises(Stopped) as stop, watch_signals():
        ask(number)
    assert stop.value.number == number
    assert str(stop.value) == number.name
    assert [signal.getsignal(one) for one in stops.SIGNALS] == before
    assert stops.asked() is None


def test_a_deferred_signal_waits_for_the_end_of_the_block():
    seen = []

    def step():
        ask()
        stops.check()  # not meant for here
        seen.append(stops.asked())

    with pytest.raises(Stopped), watch_signals(), deferred():
        step()
    assert seen == [signal.SIGTERM]


def test_a_second_signal_does_not_wait():
    seen = []

    def step():
        ask()
        seen.append(stops.asked())
        ask(signal.SIGINT)
        seen.append(stops.asked())

    with pytest.raises(Stopped) as stop, watch_signals(), deferred():
        step()
    assert seen == [signal.SIGTERM]
    assert stop.value.number == signal.SIGINT


def test_a_second_signal_waits_where_signals_come_twice():
    seen = []

    def step():
        ask()
        ask()
        seen.append(stops.asked())

    with pytest.raises(Stopped), watch_signals(), deferred(second_too=True):
        step()
    assert seen == [signal.SIGTERM]
    with pytest.raises(Stopped), watch_signals(), deferred():
        step()  # not for ever
    assert seen == [signal.SIGTERM]


def test_a_stop_that_python_dropped_is_raised_by_the_next_check(monkeypatch):
    class Noisy:
        def __del__(self):
            ask()

    dropped = []
    monkeypatch.setattr("sys.unraisablehook", lambda one: dropped.append(one.exc_type))
    with watch_signals():
        Noisy()  # gone at once
        with pytest.raises(Stopped):
            stops.check()
    assert dropped == [Stopped]


def test_nothing_is_watched_outside_the_main_thread():
    done = []

    def work():
        with watch_signals():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = Thread(target=work)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert done == [before]
