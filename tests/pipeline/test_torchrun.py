"""One training by several processes, as torchrun starts them: one artifact, also where they were stopped on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from calls import add_options
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import RESUME, TRAINING_LOG
from ris_pipeline.artifacts.verify import find_damage
from ris_pipeline.training.checkpoints import TrainingState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[2]
ALONE = ["-m", "stages.cli"]
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *ALONE]
STEP1 = ["train-step1", "--set", "batch_size=2", "--set", "refs_per_image=1", "--set"]
KILLED = "ris: another process of torchrun ended; if nothing above says why, look for what killed it, then run"
GO_ON = "; to go on: the same torchrun command\n"


@pytest.fixture
def root(tmp_path, write_tiny_card):
    """A folder with a card and its data set."""
    write_tiny_card(tmp_path, train=4, val=1)
    assert end(start(tmp_path, [*ALONE, "data", "make-shapes"]))[0] == 0
    return tmp_path


def start(root: Path, command: list[str], runs: str = "runs") -> subprocess.Popen[str]:
    own = command.index("stages.cli") + 1
    places = {"dataset": "tiny.toml", "data_root": "data", "runs": runs, "workers": 0, "device": "cpu"}
    return subprocess.Popen(
        [sys.executable, *command[:own], *add_options(command[own:], **places)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


def load_step1(root: Path, runs: str) -> Artifact:
    step1 = find_latest(root / runs, "tiny", "step1")
    assert step1 is not None
    assert [path.name for path in step1.path.parent.iterdir() if not path.is_symlink()] == [step1.digest]
    assert find_damage(step1.path) == []
    return step1


def test_two_processes_make_one_artifact(root):
    command = [*LAUNCH, *STEP1, "epochs=2"]
    results = [end(start(root, command)) for _ in range(2)]
    for code, _, stderr in results:
        assert code == 0, stderr
    (_, first_out, first_err), (_, second_out, second_err) = results
    assert first_err.count("step1: runs") == 1
    assert second_err.count("step1: up to date") == 1
    assert first_out == second_out
    assert len(first_out.splitlines()) == 1  # one process speaks

    step1 = load_step1(root, "runs")
    assert step1.manifest["host"]["ranks"] == 2
    refs, steps = step1.manifest["counts"]["refs"], step1.manifest["counts"]["steps"]
    assert steps == 2 * (refs // 2)  # two epochs of batches of 2 refs, one for each process
    lines = (step1.path / TRAINING_LOG).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(steps))


def test_each_epoch_is_scored_once(root):
    command = [*LAUNCH, *STEP1, "epochs=2", "--set", "validate=val", "--set", "select=miou"]
    code, _, stderr = end(start(root, command))
    assert code == 0, stderr
    step1 = load_step1(root, "runs")
    lines = [json.loads(line) for line in (step1.path / TRAINING_LOG).read_text().splitlines()]
    n_steps = step1.manifest["counts"]["steps"]
    assert len(lines) == n_steps
    assert [line["step"] for line in lines if "val_miou" in line] == [n_steps // 2 - 1, n_steps - 1]


def send(number: signal.Signals, *pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # the one before it has ended it
            os.kill(pid, number)


Disturb = Callable[[int, dict[int, int]], None]
# What happens to the launcher and to the processes that it has started, by rank; whether the step is ended first.
DISTURBANCES: dict[str, tuple[Disturb, bool]] = {
    "SIGTERM to the launcher": (lambda launcher, ranks: send(signal.SIGTERM, launcher), True),
    "SIGTERM to all processes": (lambda launcher, ranks: send(signal.SIGTERM, launcher, *ranks.values()), True),
    "SIGTERM to one process": (lambda launcher, ranks: send(signal.SIGTERM, ranks[1]), True),
    "SIGKILL of the one that writes": (lambda launcher, ranks: send(signal.SIGKILL, ranks[0]), False),
    "SIGKILL of the other": (lambda launcher, ranks: send(signal.SIGKILL, ranks[1]), False),
    "SIGKILL of the launcher": (lambda launcher, ranks: send(signal.SIGKILL, launcher), True),
}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the processes")
def test_a_training_that_is_stopped_in_any_way_ends_in_the_same_bytes(root):
    command = [*LAUNCH, *STEP1, "epochs=60"]
    code, _, stderr = end(start(root, command, "calm"))
    assert code == 0, stderr
    calm = load_step1(root, "calm")

    n_done, partial = 0, root / "stormy/tiny/step1" / f"{calm.digest}.partial"
    for name, (disturb, ends_step) in DISTURBANCES.items():
        process = start(root, command, "stormy")
        wait_for_steps(partial / TRAINING_LOG, n_done + 3)
        ranks = find_ranks(process.pid)
        assert sorted(ranks) == [0, 1]
        began = time.monotonic()
        disturb(process.pid, ranks)
        code, _, stderr = end(process)  # its stderr closes with the last of the processes
        print(f"{name}: all ended after {time.monotonic() - began:.1f} s")
        assert code != 0
        wait_for(lambda: not any(map(is_alive, ranks.values())), 5)  # noqa: B023 - called at once
        assert "RuntimeError" not in stderr
        assert stderr.count(GO_ON if ends_step else KILLED) == 1, stderr
        n_logged = len((partial / TRAINING_LOG).read_text().splitlines())
        if ends_step:
            assert n_logged > n_done
            n_done = n_logged
        assert TrainingState(partial, {}, is_writer=False).load() == n_done

    code, _, stderr = end(start(root, command, "stormy"))
    assert code == 0, stderr
    assert "an earlier run broke off: resuming" in stderr
    assert not (partial / RESUME).exists()
    assert (load_step1(root, "stormy").path / "files.json").read_bytes() == (calm.path / "files.json").read_bytes()


def wait_for_steps(log: Path, n: int) -> None:
    """Returns when a process that was started just now has logged its n-th step."""
    began = time.time_ns()
    wait_for(lambda: log.exists() and log.stat().st_mtime_ns > began and log.read_text().count("\n") >= n, 120)


def wait_for(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def find_ranks(launcher: int) -> dict[int, int]:
    """{rank: pid} of the processes that torchrun has started."""
    ranks = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"RANK="):
                ranks[int(variable.partition(b"=")[2])] = int(pid)
    return ranks


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
