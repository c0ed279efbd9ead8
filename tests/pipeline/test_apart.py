"""Trainings on machines that share no disk: two processes in folders of their own, each with its data/ and runs/."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calls import add_options
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.layout import RESUME, TRAINING_LOG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CHECKOUT = Path(__file__).parents[2]
STEP1 = ["train-step1", "--set", "epochs=6"]


@pytest.fixture
def machines(copy_of_project: Path, tmp_path: Path) -> list[Path]:
    """The folders of two machines: in the first the project, in the other its card and its data set."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(copy_of_project / "tiny.toml", other)
    shutil.copytree(copy_of_project / "data", other / "data")
    return [copy_of_project, other]


@pytest.fixture
def start() -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """A function (command, folders) that starts a process in each folder, as the only one of its machine."""
    processes = []

    def start_all(command: list[str], folders: list[Path]) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = add_options(command, dataset="tiny.toml", data_root="data", runs="runs", workers=0, device="cpu")
        for rank, folder in enumerate(folders):
            places = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "stages.cli", *words], cwd=folder, text=True,
                    env={**os.environ, "PYTHONPATH": str(CHECKOUT), **{k: str(v) for k, v in places.items()}},
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        return processes[-2:]

    yield start_all
    for process in processes:
        with process:
            process.kill()


def end(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """The exit status of each, and what both wrote to stderr."""
    texts = [process.communicate(timeout=800)[1] for process in processes]
    return [process.returncode for process in processes], "".join(texts)


def test_a_training_is_that_of_processes_with_one_disk_and_goes_on(machines, start, tmp_path):
    first, other = machines
    shared = tmp_path / "shared"
    shutil.copytree(other, shared)
    codes, stderr = end(start(STEP1, [shared, shared]))
    assert codes == [0, 0], stderr
    expected = find_latest(shared / "runs", "tiny", "step1")
    assert expected is not None

    partial = first / "runs/tiny/step1" / f"{expected.digest}.partial"
    processes = start(STEP1, machines)
    deadline = time.monotonic() + 300
    while not (partial / TRAINING_LOG).exists() or (partial / TRAINING_LOG).read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes, stderr = end(processes)
    assert codes[0] == 143, stderr  # the other may ask the store, which is in the first one, when that is gone
    assert (partial / RESUME).exists()
    assert [path.name for path in (other / "runs/tiny/step1").iterdir()] == []

    codes, stderr = end(start(STEP1, machines[::-1]))
    assert codes == [1, 1]
    assert f"{expected.digest}.partial/{RESUME}: a run broke off on " in stderr
    assert "start torchrun with --node-rank 0 here" in stderr

    codes, stderr = end(start(STEP1, machines))
    assert codes == [0, 0], stderr
    assert "an earlier run broke off: resuming" in stderr
    found = find_latest(first / "runs", "tiny", "step1")
    assert found is not None
    assert (found.path / "files.json").read_bytes() == (expected.path / "files.json").read_bytes()
    assert [path.name for path in (other / "runs/tiny/step1").iterdir()] == []


def test_what_the_other_machine_lacks_is_named(machines, start):
    first, other = machines
    codes, stderr = end(start(["dump-responses", "--force"], machines))
    assert codes == [1, 1]
    assert "responses is written by all processes: on several machines --runs has to be one shared folder" in stderr

    step2 = ["train-step2", "--set", "epochs=2"]
    codes, stderr = end(start(step2, machines))
    assert codes == [1, 1]
    (labels,) = (first / "runs/tiny/pseudolabels").glob("latest-refine*")
    place = labels.parent.relative_to(first) / labels.readlink()
    assert f"ris: {place}: not there on " in stderr
    assert "copy it there (rsync -a)" in stderr

    shutil.copytree(first / place, other / place)
    codes, stderr = end(start(step2, machines))
    assert codes == [0, 0], stderr

    annotations = next((other / "data/tiny/refer/shapes").glob("instances.json"))
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(content, indent=1))
    codes, stderr = end(start([*step2, "--force"], machines))
    assert codes == [1, 1]
    assert "has other annotations or images below data than the machine of the first process" in stderr
