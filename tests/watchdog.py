"""Runs a command as a user does, and sees to it that nothing of it is left when it has ended."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
SETTLE = 10.0  # seconds in which all processes of a command that has ended must be gone


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str
    seconds_to_settle: float  # from its end until its last process was gone

    @property
    def error(self) -> str:
        """The one line of the error; fails where there is another number of them, or a line break within."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("ris:")]
        assert len(lines) == 1, self.stderr
        assert r"\n" not in lines[0], lines[0]
        assert "Traceback" not in self.stderr, self.stderr
        return lines[0]


def run_ris(
    *arguments: object,
    prefix: tuple[str, ...] = (),
    launcher: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    seconds: float = 60,
) -> Ended:
    """Run `ris` with the arguments in a process of its own, by `launcher` (torchrun's arguments) and behind
    the words `prefix` if given.

    Fails where it does not end in time, and where one of its processes lives 10 s longer than it.
    """
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **(env or {})}
    # Found again by this, wherever a process of it moves to.
    environment["RIS_WATCHDOG"] = mark = f"{os.getpid()}-{time.monotonic_ns()}"
    command = [*prefix, sys.executable, *launcher, "-m", "stages.cli", *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            # Not only the process: what it has started holds the pipes open as well.
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            living = find_processes(mark)
            for pid in living:
                os.kill(pid, 9)
            stdout, stderr = process.communicate()
            raise AssertionError(f"still running after {seconds} s: {command}\n{living}\n{stderr}") from None
    began = time.monotonic()
    while living := find_processes(mark):
        assert time.monotonic() - began < SETTLE, living
        time.sleep(0.05)
    return Ended(process.returncode, stdout, stderr, time.monotonic() - began)


def find_processes(mark: str) -> dict[int, str]:
    """{pid: command line} of the living processes that were started with RIS_WATCHDOG=mark."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and f"RIS_WATCHDOG={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # gone meanwhile, or somebody else's
            continue
    return found
