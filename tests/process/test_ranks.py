"""What several processes of one command do for each other, started as torchrun starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ris_pipeline.errors import RisError
from ris_pipeline.process import ranks

CHECKOUT = Path(__file__).parents[2]


def start(script, n, *arguments):
    """The n processes of a script, without torchrun: the first keeps the store, the others are of another machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(CHECKOUT)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, **places, "RANK": str(rank), "LOCAL_RANK": str(max(rank - 1, 0))},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(n)
    ]  # fmt: skip


def end(processes):
    """Exit status, stdout and stderr of each."""
    ends = [process.communicate(timeout=280) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, ends, strict=True)]


WORK = """
import json, os, time
import numpy as np
import torch
from ris_pipeline.errors import RisError
from ris_pipeline.process.ranks import (
    agree, agreed, any_rank, broadcast, connected, counted, gather, in_turn, is_first, joined, share, wait
)

rank = int(os.environ["RANK"])
found = {}

@agreed
def decide(value):
    return value, agree(lambda: value + 1)

@joined()
def work():
    found["first"] = is_first()
    found["decided"] = decide(10 * rank)
    try:
        agree(lambda: (_ for _ in ()).throw(RisError(f"none, says {rank}")))
    except RisError as error:
        found["refused"] = str(error)
    shown = []
    with joined(), counted(shown.append) as count:
        found["own"] = []
        for item in share(list("abcdefghij")):
            time.sleep(0.2 if rank == 1 else 0.01)
            found["own"].append(item)
            count(1)
    found["shown"] = sum(shown)
    found["gathered"] = [len(text) for text in gather(str(rank) * (9_000_000 + rank))]
    found["turns"] = in_turn(lambda: time.time())
    with connected(torch.device("cpu")) as place:
        found["n_ranks"] = place.n_ranks
        found["sent"] = [broadcast(lambda: np.arange(n, dtype=np.uint8) + 10 * rank).tolist() for n in (3, 0)]
        found["any"] = [any_rank(rank == 1), any_rank(rank == 3)]
    wait()

for _ in range(2):
    work()
print(json.dumps(found))
"""


def test_three_processes_share_out_what_there_is_to_do():
    ends = end(start(WORK, 3))
    assert [(code, stderr) for code, _, stderr in ends] == [(0, "")] * 3
    first, slow, other = found = [json.loads(stdout) for _, stdout, _ in ends]
    assert [each["first"] for each in found] == [True, False, False]
    assert [each["decided"] for each in found] == [[0, 1]] * 3
    assert [each["refused"] for each in found] == ["none, says 0"] * 3
    assert sorted(item for each in found for item in each["own"]) == list("abcdefghij")
    assert len(slow["own"]) < len(first["own"])
    assert [(each["n_ranks"], each["any"]) for each in found] == [(3, [True, False])] * 3
    assert [each["sent"] for each in found] == [[[0, 1, 2], []]] * 3
    assert first["shown"] == 10
    assert first["gathered"] == [9_000_000, 9_000_001, 9_000_002]
    assert slow["gathered"] == other["gathered"] == []
    assert first["turns"] < slow["turns"] < other["turns"]


FAIL = """
import os, sys, time
from ris_pipeline.process.ranks import joined, share, wait
from stages.context import _with_errors_shown

rank = int(os.environ["RANK"])

def work():
    for item in share(range(1000)):
        print(item, flush=True)
        time.sleep(0.02)
        if rank == 2 and item > 10:
            exec(sys.argv[1])
    wait()

try:
    _with_errors_shown(work, debug=False)
except BaseException as error:
    sys.exit(error.exit_code)
"""


FAIL_CONNECTED = """
import os, sys
import torch
from ris_pipeline.errors import RisError
from ris_pipeline.process.ranks import any_rank, connected
from stages.context import _with_errors_shown

def work():
    with connected(torch.device("cpu")):
        any_rank(False)
        if os.environ["RANK"] == "1":
            raise RisError("a.png: cannot be read")
        any_rank(False)

try:
    _with_errors_shown(work, debug=False)
except BaseException as error:
    sys.exit(error.exit_code)
"""


def test_an_error_in_a_training_is_told_before_the_connection_breaks():
    ends = end(start(FAIL_CONNECTED, 2))
    assert [(code, stderr) for code, _, stderr in ends] == [(1, ""), (1, "ris: a.png: cannot be read\n")]


@pytest.mark.parametrize(
    ("deed", "codes", "line"),
    [
        ("from ris_pipeline.errors import RisError; raise RisError('a.png: cannot be read')", [1, 1, 1],
         "ris: a.png: cannot be read\n"),
        ("1 / 0", [1, 1, 1], "ris: ZeroDivisionError: division by zero; run again with --debug for the traceback\n"),
        ("import signal; os.kill(os.getpid(), signal.SIGTERM)", [143, 143, 143],
         "ris: stopped by SIGTERM; to go on: the same torchrun command\n"),
    ],
    ids=["error", "fault", "signal"],
)  # fmt: skip
def test_what_ends_one_process_ends_all_with_one_line(deed, codes, line):
    ends = end(start(FAIL, 3, deed))
    assert [code for code, _, _ in ends] == codes
    assert "".join(stderr for _, _, stderr in ends) == line
    assert sum(stdout.count("\n") for _, stdout, _ in ends) < 200


def test_a_process_alone_does_all_of_it():
    with ranks.joined(), ranks.counted(lambda n: None) as count:
        assert list(ranks.share([1, 2])) == [1, 2]
        assert ranks.agree(lambda: 3) == ranks.in_turn(lambda: 3) == 3
        assert ranks.gather(4) == [4]
        assert ranks.is_first()
        assert ranks.broadcast(lambda: np.array([5], np.uint8)) == [5]
        assert not ranks.any_rank(False)
        ranks.wait()
        count(1)


def test_a_process_without_a_gpu_of_its_own_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RisError, match="process 2 of this machine has no GPU of its own, there are 2"):
        ranks.Ranks(2, 4, 2).choose_device(torch.device("cuda"))
    assert ranks.Ranks(2, 4, 2).choose_device(torch.device("cpu")).type == "cpu"
