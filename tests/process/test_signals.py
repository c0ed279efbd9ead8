import os
import signal
import subprocess
import sys
from threading import Thread

import pytest

from ris_pipeline.process import signals as stops
from ris_pipeline.process.signals import Stopped, deferred, watch_signals


def ask(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once(number):
    before = [signal.getsignal(number) for number in stops.SIGNALS]
    with pytest.raises(Stopped) as stop, watch_signals():
        ask(number)
    assert stop.value.number == number
    assert str(stop.value) == number.name
    assert [signal.getsignal(number) for number in stops.SIGNALS] == before
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


STUBBORN = """
import os, time
from ris_pipeline.process.signals import Stopped, asked, deferred, watch_signals
try:
    with watch_signals(), deferred():
        print("ready", flush=True)
        while asked() is None:
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(1 if "WORLD_SIZE" in os.environ else 400)  # longer than the test may take
except Stopped as stop:
    print(stop)
"""


@pytest.mark.parametrize(
    ("ranks", "code", "last_words"),
    [({}, -signal.SIGTERM, ""), ({"WORLD_SIZE": "2"}, 0, "SIGINT\n")],
    ids=["alone", "under torchrun"],
)
def test_a_second_signal_kills_except_where_signals_come_twice(ranks, code, last_words):
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        env={**os.environ, **ranks},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == last_words
        assert process.wait() == code


def test_a_stop_that_python_dropped_is_raised_by_the_next_check(monkeypatch):
    class Noisy:
        def __del__(self):
            ask()

    dropped = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropping: dropped.append(dropping.exc_type))
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
