"""Faults of disk, clock and other processes: each ends in one clear line, and the next run in the right result.

Faults are injected where Python opens files: every file below a folder is then a `_Faulty` one. Files that compiled
libraries open themselves (safetensors) are not reached; how their damage is found is tested as well.
"""

import builtins
import errno
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from calls import places_in
from ris_pipeline.artifacts.verify import find_damage

# A file that fails while it is closed, or in the hands of somebody who forgets it, cannot raise its error any more.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STAGES = {
    "dump": (["dump-responses", "--split", "val"], "responses/latest-val"),
    "labels": (["make-pseudolabels", "--no-refine"], "pseudolabels/latest-no-refine"),
    "refined labels": (["make-pseudolabels", "--refine"], "pseudolabels/latest-refine"),
    "scores": (["score", "--split", "val", "--stage", "prms"], "scores/latest-prms-val"),
    "step1": (["train-step1"], "step1/latest"),
}


class Disk:
    """A folder whose files fail: the n-th write and all later ones, or the n-th read, or opening by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.n_writes = self.n_reads = 0
        self.full_at = self.unreadable_at = -1  # which write or read fails, from 0; never
        self.forbidden: Callable[[str, bool], bool] = lambda path, writing: False

    def count_write(self) -> None:
        self.n_writes += 1
        if 0 <= self.full_at < self.n_writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def count_read(self) -> None:
        self.n_reads += 1
        if self.n_reads - 1 == self.unreadable_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open(self, path: str, mode: str, buffering: int, text: dict[str, Any]) -> Any:
        writing = bool(set(mode) & set("wax+"))
        if self.forbidden(path, writing):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        raw = _Faulty(path, mode.replace("b", "").replace("t", ""), self)
        if buffering == 0:
            return raw
        buffer = (
            io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw) if writing else io.BufferedReader(raw)
        )
        return buffer if "b" in mode else io.TextIOWrapper(buffer, **text)


class _Faulty(io.FileIO):
    def __init__(self, path: str, mode: str, disk: Disk) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        self.disk.count_write()
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        self.disk.count_read()
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self.disk.count_read()
        return super().readall()

    def read(self, size: int = -1) -> bytes:
        self.disk.count_read()
        return super().read(size)


@contextmanager
def faulty(folder: Path) -> Iterator[Disk]:
    """Every file below the folder that Python opens in the block is on the returned disk."""
    disk, real = Disk(folder), builtins.open

    def open_on_disk(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        if isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(disk.folder):
            return disk.open(
                os.fspath(file), mode, buffering, {"encoding": encoding, "errors": errors, "newline": newline}
            )
        return real(file, mode, buffering, encoding, errors, newline, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", open_on_disk)
        patch.setattr(io, "open", open_on_disk)
        yield disk


class Stand:
    """A copy of the finished chain in which one artifact is made again."""

    def __init__(
        self, root: Path, call_ris: Callable[..., int], capsys: pytest.CaptureFixture[str], stage: str
    ) -> None:
        self.root, self.call_ris, self.capsys = root, call_ris, capsys
        self.command, link = STAGES[stage]
        self.artifact = (root / "runs" / "tiny" / link).resolve()

    def forget(self) -> None:
        """Remove what the stage has made, whole or half."""
        for path in (self.artifact, self.artifact.with_name(f"{self.artifact.name}.partial")):
            shutil.rmtree(path, ignore_errors=True)

    def run(self, *command: str) -> tuple[int, str]:
        """Exit status and stderr of a command, by default of the stage's."""
        self.capsys.readouterr()
        code = self.call_ris(*(command or self.command), **places_in(self.root), quiet=True)
        return code, self.capsys.readouterr().err

    def fails(self, *command: str) -> str:
        """The one line in which a command fails; no artifact is there after it."""
        code, errors = self.run(*command)
        assert code == 1, errors
        assert errors.count("\n") == 1, errors
        assert errors.startswith("ris: ")
        assert "--debug" not in errors, errors  # foreseen, not caught at the last moment
        return errors

    @property
    def contents(self) -> bytes:
        """The table of the artifact's files, with their checksums."""
        return (self.artifact / "files.json").read_bytes()

    def recovers(self, contents: bytes) -> None:
        """The same command now makes exactly what it made without the fault, and leaves nothing else."""
        code, errors = self.run()
        assert code == 0, errors
        assert self.contents == contents
        assert find_damage(self.artifact) == []
        names = {path.name for path in self.artifact.parent.iterdir()}
        assert not [name for name in names if "." in name], names  # locks, parts, half-made links


@pytest.fixture
def stand(copy_of_project, call_ris, capsys) -> Callable[[str], Stand]:
    """A function that gives a Stand with the stage's artifact made once."""

    def make(stage: str) -> Stand:
        subject = Stand(copy_of_project, call_ris, capsys, stage)
        code, errors = subject.run()  # scores are not in the chain
        assert code == 0, errors
        return Stand(copy_of_project, call_ris, capsys, stage)

    return make


def count_writes(subject: Stand) -> int:
    subject.forget()
    with faulty(subject.root / "runs") as disk:
        assert subject.run()[0] == 0
    return disk.n_writes


@pytest.mark.parametrize("stage", ["dump", "labels", "scores"])
def test_a_full_disk(stage, stand):
    subject = stand(stage)
    contents = subject.contents
    n_writes = count_writes(subject)
    assert n_writes >= 5
    fill_up(subject, n_writes // 2, contents)


def fill_up(subject: Stand, n: int, contents: bytes) -> None:
    """The disk is full at the n-th write; there is room again for the next run."""
    subject.forget()
    with faulty(subject.root / "runs") as disk:
        disk.full_at = n
        assert "the disk is full; free some space" in subject.fails()
    assert not subject.artifact.exists()
    subject.recovers(contents)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_at_any_write(stage, stand):
    subject = stand(stage)
    contents = subject.contents
    n_writes = count_writes(subject)
    points = range(0, n_writes, max(n_writes // 8, 1))
    for n in points:
        fill_up(subject, n, contents)
    print(f"{stage}: the disk was full {len(points)} times, at one of {n_writes} writes")


def test_a_folder_without_permission(stand):
    subject = stand("labels")
    contents = subject.contents
    subject.forget()
    with faulty(subject.root / "runs") as disk:
        disk.forbidden = lambda path, writing: (writing and path.endswith((".png", ".json"))) or ".png" in path
        assert "Permission denied; check its permissions" in subject.fails()
    subject.recovers(contents)


def test_data_without_permission(stand):
    subject = stand("labels")
    contents = subject.contents
    subject.forget()
    image = min((subject.root / "data/tiny/images").glob("*.jpg"))
    with faulty(subject.root / "data") as disk:
        disk.forbidden = lambda path, writing: path == str(image)
        line = subject.fails()
    assert str(image) in line
    assert "Permission denied" in line
    subject.recovers(contents)


READ = [("dump", "data"), ("labels", "runs"), ("scores", "runs")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("stage", "folder"), READ)
def test_a_disk_that_does_not_give_back_what_it_has(stage, folder, stand):
    subject = stand(stage)
    fail_a_read(subject, folder, count_reads(subject, folder) // 2, subject.contents)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("stage", "folder"), READ)
def test_any_read_that_fails(stage, folder, stand):
    subject = stand(stage)
    contents, n_reads = subject.contents, count_reads(subject, folder)
    points = range(0, n_reads, max(n_reads // 8, 1))
    for n in points:
        fail_a_read(subject, folder, n, contents)
    print(f"{stage}: {len(points)} reads of {n_reads} failed")


def count_reads(subject: Stand, folder: str) -> int:
    subject.forget()
    with faulty(subject.root / folder) as disk:
        assert subject.run()[0] == 0
    return disk.n_reads


def fail_a_read(subject: Stand, folder: str, n: int, contents: bytes) -> None:
    """The n-th read of a file below the folder is an error of the disk, once."""
    subject.forget()
    with faulty(subject.root / folder) as disk:
        disk.unreadable_at = n
        code, errors = subject.run()
    # A run may also go on: where what could not be read is made again.
    assert code == 0 or errors.count("\n") == 1, errors
    assert code == 0 or any(word in errors for word in ("nput/output error", "reports an error", "damaged")), errors
    subject.recovers(contents)
    # A file whose reader was thrown out of it is closed with its last frame: now, not in another test.
    gc.collect()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


DAMAGES = {
    "flipped byte in a chunk": ("responses/latest-train", "train.zarr/logits/c/0/0/0", flip, "labels"),
    "truncated chunk": ("responses/latest-train", "train.zarr/logits/c/0/0/0", cut, "labels"),
    "flipped byte in a PNG": ("pseudolabels/latest-refine", "contact-sheet.png", flip, "step2"),
    "flipped byte in safetensors": ("step1/latest", "model.safetensors", flip, "dump"),
    "flipped byte in a manifest": ("step1/latest", "manifest.json", flip, "dump"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_nothing_is_made_of_what_is_damaged(name, copy_of_project, call_ris, capsys):
    source, file, spoil, stage = DAMAGES[name]
    commands = {"step2": "train-step2"}
    subject = Stand(copy_of_project, call_ris, capsys, stage if stage in STAGES else "step1")
    command = [commands[stage]] if stage in commands else subject.command
    path = (copy_of_project / "runs" / "tiny" / source).resolve() / file
    whole = path.read_bytes()
    spoil(path)
    line = subject.fails(*command, "--force")
    assert "damaged" in line
    assert path.name in line
    assert "`ris status --repair`" in line
    code, errors = subject.run("status", "--repair")
    if source.startswith("step1"):  # a training cannot be repeated in part
        assert code == 1, errors
        assert subject.run("train-step1", "--force")[0] == 0
    else:
        assert code == 0, errors
    if not path.exists():  # taken out of publication: its command goes on from what is whole
        assert subject.run(*(["dump-responses"] if path.suffix != ".png" else ["make-pseudolabels"]))[0] == 0
    assert path.name == "manifest.json" or path.read_bytes() == whole  # a manifest has the time of day
    if stage in STAGES:
        contents = subject.contents
        subject.forget()
        subject.recovers(contents)


# A run ends where it would write the first of these; then a byte of each of the others is flipped.
HALF_MADE = {
    "labels": ("contact-sheet.png", ["*.png"]),
    "refined labels": ("contact-sheet.png", ["*.png", "seeds/*.png", "irnet.safetensors", "metrics.jsonl"]),
    "dump": (
        "selected/c",
        ["*/zarr.json", "*/*/zarr.json", "*/sent_id/c/0", "*/image_hw/c/0/0", "*/logits/c/0/0/0"],
    ),
    "step1": ("files.json", ["model.safetensors", "metrics.jsonl"]),
}


def break_off(subject: Stand, file: str) -> Path:
    """The folder that a run leaves which cannot write the file."""
    subject.forget()
    with faulty(subject.root / "runs") as disk:
        disk.forbidden = lambda path, writing: writing and f"/{file}" in path
        subject.fails()
    return subject.artifact.with_name(f"{subject.artifact.name}.partial")


@pytest.mark.parametrize("stage", HALF_MADE)
def test_a_flipped_byte_in_what_a_broken_run_left(stage, stand):
    subject = stand(stage)
    contents = subject.contents
    last, patterns = HALF_MADE[stage]
    partial = break_off(subject, last)
    for pattern in patterns:
        path = min(partial.glob(pattern))
        whole = path.read_bytes()
        flip(path)
        assert path.read_bytes() != whole
    subject.recovers(contents)


def test_a_flipped_byte_in_the_scores_of_a_block(stand):
    subject = stand("dump")
    contents = subject.contents
    flip(next(break_off(subject, "selected/c").glob("*/prms_score/c/0")))
    subject.recovers(contents)


@pytest.mark.parametrize("stage", ["refined labels", "step1"])
def test_a_flipped_byte_in_a_checkpoint(stage, stand):
    subject = stand(stage)
    contents = subject.contents
    flip(break_off(subject, HALF_MADE[stage][0]) / "resume.pt")
    line = subject.fails()
    assert "resume.pt: damaged checkpoint" in line
    assert "start over with --force" in line
    assert subject.run(*subject.command, "--force") == (0, "")
    subject.recovers(contents)


def test_a_loss_that_is_not_finite(stand, monkeypatch):
    from ris_pipeline.training import checkpoints
    from ris_pipeline.training.tasks import Step1Task

    forward, n_steps = Step1Task.forward, 0

    def overflow(task: Step1Task, batch: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        bad = n_steps == n_good + 1
        return {name: loss * float("nan") if bad else loss for name, loss in forward(task, batch).items()}

    subject = stand("step1")
    contents = subject.contents
    subject.forget()
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    monkeypatch.setattr(Step1Task, "forward", overflow)
    n_good = 2
    line = subject.fails()
    assert line.startswith("ris: step 2: the loss is not finite; refs of the batch: [")
    partial = subject.artifact.with_name(f"{subject.artifact.name}.partial")
    assert checkpoints.TrainingState(partial, {}).load() == 2
    n_steps, n_good = 0, 0
    assert subject.fails() == line  # the first step of this run

    n_steps, n_good = 0, 10**9
    assert subject.run(*subject.command, "--set", "lr=1e-6") == (0, "")
    other = (subject.artifact.parent / "latest").resolve()
    assert other.name != subject.artifact.name
    assert n_steps == (other / "metrics.jsonl").read_text().count("\n")  # from the beginning
    assert partial.exists()
    monkeypatch.undo()
    subject.recovers(contents)


def test_a_clock_that_goes_backwards(stand, monkeypatch):
    from ris_pipeline.artifacts import publish as publishing

    class Backwards(datetime):
        calls = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            cls.calls += 1
            return datetime(2020, 1, 1, tzinfo=tz) - timedelta(days=cls.calls)

    subject = stand("labels")
    contents = subject.contents
    subject.forget()
    monkeypatch.setattr(publishing, "datetime", Backwards)
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start - 3600 * next(hours))
    hours = iter(range(10**6))
    subject.recovers(contents)
    assert Backwards.calls >= 2
    monkeypatch.undo()
    for path in (subject.root / "runs").rglob("*"):
        if not path.is_symlink():
            os.utime(path, (0, 0))  # as after a clock without a battery
    code, errors = subject.run(*subject.command, "--json")
    assert (code, errors) == (0, "")
    assert subject.contents == contents


HOLD = """
import sys
from pathlib import Path
from ris_pipeline.artifacts.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@contextmanager
def held(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock while the block runs."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_a_dead_holder_is_no_holder(stand):
    subject = stand("labels")
    contents = subject.contents
    subject.forget()
    lock = subject.artifact.with_name(f"{subject.artifact.name}.lock")
    with held(lock) as process:
        assert f"process {process.pid} on" in subject.fails()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock.exists()
        subject.recovers(contents)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_runs_at_once(stand):
    subject = stand("refined labels")
    contents = subject.contents
    subject.forget()
    root = subject.root
    places = ["--dataset", root / "tiny.toml", "--data-root", root / "data", "--runs", root / "runs", "--workers", 0]
    command = [sys.executable, "-m", "stages.cli", *subject.command, *map(str, places), "--device", "cpu"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in runs]
    assert 0 in [process.returncode for process in runs], errors
    for process, text in zip(runs, errors, strict=True):
        assert process.returncode == 0 or "being written by process" in text, text
    subject.recovers(contents)
