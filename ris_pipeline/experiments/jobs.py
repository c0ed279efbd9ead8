"""The groups of an experiment as processes of this machine, or as tasks of a SLURM array."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from ris_pipeline.artifacts.files import write_bytes
from ris_pipeline.process.workers import count_cores

POLL = 0.2  # seconds


def run_jobs(words: Sequence[str], n_groups: int, n_jobs: int, logs: Path) -> int:
    """Make the groups by the command `words` with --only K, `n_jobs` at a time; return how many ended with an error.

    Each process has its share of the cores, or a GPU of its own where CUDA_VISIBLE_DEVICES or the driver names several.
    What it prints on stdout, a line per row, is printed; its progress goes to <logs>-K.log. If this process ends, so do
    they, and what they leave is resumed by the next run.
    """
    logs.parent.mkdir(parents=True, exist_ok=True)
    n_jobs = min(n_jobs, n_groups)  # a single group has all cores
    waiting, running = deque(range(n_groups)), dict[int, subprocess.Popen[str]]()
    free = deque(range(n_jobs))
    gpus = _list_gpus()
    n_failed = 0
    try:
        while waiting or running:
            while waiting and free:
                slot, k = free.popleft(), waiting.popleft()
                environment = dict(os.environ, OMP_NUM_THREADS=str(max(1, count_cores() // n_jobs)))
                if gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
                with logs.with_name(f"{logs.name}-{k}.log").open("a") as log:
                    running[slot] = subprocess.Popen(
                        [*words, "--only", str(k)], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
                    )
            slot = next(iter(running))
            for slot in list(running):
                try:
                    out, _ = running[slot].communicate(timeout=POLL)
                except subprocess.TimeoutExpired:
                    continue
                n_failed += running.pop(slot).returncode != 0
                free.append(slot)
                print(out, end="", flush=True)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return n_failed


def _list_gpus() -> list[str]:
    """Return the devices to spread processes over, as CUDA_VISIBLE_DEVICES would name them."""
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return chosen.split(",")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(k) for k, line in enumerate(listed.splitlines()) if line.startswith("GPU")]


def write_slurm(file: Path, name: str, words: Sequence[str], groups: Sequence[int], logs: Path) -> None:
    """Write an sbatch script with an array task for each of the groups, which shares no training with the others.

    A task skips what is finished and waits for what another one is making, so the script may be submitted twice.
    Partition, time and GPU are the cluster's own: give them to sbatch (`sbatch --gres=gpu:1 --time=8:00:00 FILE`).
    """
    logs.mkdir(parents=True, exist_ok=True)
    called = [word if word != sys.executable else "python" for word in words]
    script = (
        "#!/bin/bash\n"
        f"#SBATCH --job-name=ris-{name}\n"
        f"#SBATCH --array=0-{max(0, len(groups) - 1)}\n"
        f"#SBATCH --output={logs}/%x-%a.log\n"
        "set -eu\n"
        f"groups=({' '.join(map(str, groups))})\n"
        f'exec {shlex.join(called)} --only "${{groups[$SLURM_ARRAY_TASK_ID]}}"\n'
    )
    write_bytes(file, script.encode())
