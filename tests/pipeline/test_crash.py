"""Commands killed at random moments and started again end in the same bytes, and leave nothing behind."""

import hashlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from calls import add_options, places_in
from ris_pipeline.artifacts.layout import RECORDS
from ris_pipeline.training.checkpoints import TrainingState

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see what still lives"),
    pytest.mark.timeout(900),  # a minute on a free machine
]

CHECKOUT = Path(__file__).parents[2]
# Seconds in which all processes of a killed command have to be gone: torch's readers look every 5 s, and torchrun waits
# 30 s for the other ranks.
SETTLE = 20.0, 50.0

SMALL_CLIP = [
    word
    for value in (
        "object_steps=4", "object_batch=4", "scene_steps=3", "scene_batch=4", "mask_steps=2", "object_lr=1e-3",
    )
    for word in ("--set", value)
]  # fmt: skip
COMMANDS = {
    "make-shapes": ["data", "make-shapes"],
    "pretrain-clip": ["pretrain-clip", *SMALL_CLIP],
    "train-step1": ["train-step1"],
    "dump-responses": ["dump-responses"],
    "make-pseudolabels --no-refine": ["make-pseudolabels", "--no-refine"],
    "make-pseudolabels --refine": ["make-pseudolabels", "--refine"],
    "train-step2": ["train-step2"],
    "score": ["score"],
    "predict": ["predict", "the red star", "a circle"],
}


@dataclass
class Launcher:
    """Runs commands on the project in `root`, each in a process group of its own."""

    process: subprocess.Popen[bytes]
    root: Path
    peak_kib: int = 0  # of the last command

    @property
    def out(self) -> Path:
        """Where `ris predict` writes."""
        return self.root / "out"

    def start(self, command: list[str], *extra: str, workers: str = "0", n_ranks: int = 1) -> int:
        """The pid of the command's process, or of the parent of its ranks."""
        assert self.process.stdin is not None
        places = {**places_in(self.root), "workers": workers, "image": self.root / "data/tiny/images", "out": self.out}
        words = add_options([*command, *extra], **places)
        request = {"arguments": words, "stderr": str(self.root / "errors.txt"), "n_ranks": n_ranks}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return int(self.read_line())

    def read_line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def read_status(self) -> int:
        """The exit status of the command, when it has ended."""
        status, self.peak_kib = map(int, self.read_line().split())
        return status

    def has_ended(self, seconds: float) -> bool:
        """Whether the command ends within this time; its status can then be read."""
        return bool(select.select([self.process.stdout], [], [], max(seconds, 0))[0])

    def run(self, command: list[str], *extra: str, workers: str = "0", n_ranks: int = 1) -> float:
        """Run a command undisturbed; the seconds from the moment that it began to write."""
        began = self.wait_until_it_writes(self.start(command, *extra, workers=workers, n_ranks=n_ranks))
        self.has_ended(600)
        status = self.read_status()
        assert status == 0, (command, (self.root / "errors.txt").read_text()[-2000:])
        return time.monotonic() - began

    def wait_until_it_writes(self, pid: int) -> float:
        """The time at which the command took a lock, put a file into `out` (`ris predict`) or had ended."""
        began = time.time_ns()
        while not self.has_ended(0.005) and not (self.out.exists() and self.out.stat().st_mtime_ns > began):
            locks = [*self.root.glob("runs/*/*/*.lock"), *self.root.glob("data/*.lock")]
            if any(group_of(read_if_there(lock)) == pid for lock in locks):
                break
        return time.monotonic()

    def run_and_kill(
        self, command: list[str], delay: float, *extra: str, workers: str, n_ranks: int, victim: str
    ) -> bool:
        """Kill the command `delay` seconds after it began to write; False if it was done.

        `victim`: "parent", "all", or one of its children, "0" or "1".
        """
        pid = self.start(command, *extra, workers=workers, n_ranks=n_ranks)
        self.wait_until_it_writes(pid)
        if self.has_ended(delay):
            assert self.read_status() == 0, (command, (self.root / "errors.txt").read_text()[-2000:])
            return False
        with suppress(ProcessLookupError, IndexError):  # it ended just now
            if victim == "all":
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid if victim == "parent" else children_of(pid)[int(victim)], signal.SIGKILL)
        status = self.read_status()
        assert status in (0, -signal.SIGKILL if victim in ("all", "parent") else 1), status
        wait_for_end_of(pid, SETTLE[n_ranks > 1])
        return status != 0


def read_if_there(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def group_of(holder: str) -> int | None:
    """The process group of the process that a lock names; None where it is gone."""
    words = holder.split()
    try:
        return os.getpgid(int(words[1])) if words else None
    except ProcessLookupError:
        return None


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def living_of(group: int) -> list[str]:
    """The processes of a group that are not dead."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:  # gone meanwhile
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


def wait_for_end_of(group: int, seconds: float = SETTLE[0]) -> None:
    """Returns when no process of the group lives; fails where one does not end in time."""
    deadline = time.monotonic() + seconds
    while living := living_of(group):
        assert time.monotonic() < deadline, living
        time.sleep(0.05)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    """A function (root, seconds between checkpoints) that gives a launcher."""
    processes = []

    def start(root: Path, seconds: float = 0.0) -> Launcher:
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("launcher.py")), str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment,
        )  # fmt: skip
        processes.append(process)
        return Launcher(process, root)

    yield start
    for process in processes:
        with process:
            process.kill()


def checksums(folder: Path) -> dict[str, str]:
    """{path: SHA-256} of all files below a folder, without what holds times of day: the records, when files changed.

    predictions.json names the project, which does not count.
    """
    project = str(folder.parent).encode()
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes().replace(project, b"")).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (*RECORDS, "data.json")
    }


def check_same(calm: Path, stormy: Path) -> None:
    """Data, artifacts, links and predictions of two projects are the same, and there is nothing else."""
    for place in ("data", "runs", "out"):
        expected, found = checksums(calm / place), checksums(stormy / place)
        assert sorted(found) == sorted(expected)
        assert [name for name in found if found[name] != expected[name]] == []
        assert list_names(stormy / place) == list_names(calm / place)


def list_names(folder: Path) -> dict[str, str]:
    """Every name below a folder, with the target of a link."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else ""
        for path in sorted(folder.rglob("*"))
    }


def kill_at_random(
    launcher: Launcher, names: list[str], n_kills: int, durations: dict[tuple[str, str], float], rng: random.Random,
    *, n_ranks: int = 1, victims: Sequence[str] = ("parent", "all"),
) -> Counter[str]:  # fmt: skip
    """Kill each command so often at random moments and let it end; the number of kills by command.

    Killed alone, its workers have to notice, and the ranks beside it; a machine that goes down kills all.
    """
    kills: Counter[str] = Counter()
    for name in names:
        command, anew = COMMANDS[name], []
        while kills[name] < n_kills:
            workers = rng.choice("001")  # the result does not depend on it
            delay = rng.uniform(0, durations[name, workers])
            victim = rng.choice(victims)
            if launcher.run_and_kill(command, delay, *anew, workers=workers, n_ranks=n_ranks, victim=victim):
                kills[name] += 1
                print(f"{name}: {victim} killed after {delay:.2f} s", flush=True)
                anew = []
            else:
                anew = [] if name == "predict" else ["--force"]  # which predicts anew each time
        launcher.run(command, n_ranks=n_ranks)
    return kills


def test_each_stage_killed_once(project, tmp_path, launch):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    shutil.copytree(project, calm, symlinks=True)
    shutil.rmtree(calm / "runs" / "tiny" / "scores", ignore_errors=True)  # of other tests
    stormy.mkdir()
    shutil.copytree(calm / "data", stormy / "data")
    shutil.copy(calm / "tiny.toml", stormy)
    launcher = launch(stormy)
    names = list(COMMANDS)[1:]
    kills = kill_at_random(launcher, names, 1, defaultdict(lambda: 1.0), random.Random(7))
    assert kills.total() == 8
    launcher.root = calm
    for name in ("pretrain-clip", "score", "predict"):  # what the project does not have
        launcher.run(COMMANDS[name])
    check_same(calm, stormy)


def wait_for(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_ends_a_command_with_a_line_that_says_how_to_go_on(copy_of_project, launch):
    """Sent to all processes, as a terminal and a batch system do."""
    launcher = launch(copy_of_project, 1000.0)
    runs = copy_of_project / "runs" / "tiny"
    long = ["--set", "epochs=100000", "--workers", "1"]

    pid = launcher.start(["train-step1"], *long)
    wait_for(lambda: any(path.stat().st_size > 200 for path in runs.glob("step1/*.partial/metrics.jsonl")))
    os.killpg(pid, signal.SIGTERM)
    assert launcher.has_ended(60)
    assert launcher.read_status() == 128 + signal.SIGTERM
    wait_for_end_of(pid)
    errors = (copy_of_project / "errors.txt").read_text()
    assert "Traceback" not in errors
    places = f"--dataset {copy_of_project}/tiny.toml --data-root {copy_of_project}/data --runs {runs.parent}"
    line = f"ris: stopped by SIGTERM; to go on: ris train-step1 {' '.join(long)} {places} --device cpu"
    assert errors.splitlines()[-1] == line
    (partial,) = runs.glob("step1/*.partial")
    assert sorted(path.name for path in partial.iterdir()) == ["metrics.jsonl", "resume.pt"]
    steps = [json.loads(line)["step"] for line in (partial / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps)))
    assert TrainingState(partial, {}).load() == len(steps)
    assert not list(runs.glob("step1/*.lock"))

    pid = launcher.start(["make-pseudolabels", "--refine", "--force"], workers="1")
    wait_for(lambda: any(runs.glob("pseudolabels/*.partial/seeds/*.png")))
    os.killpg(pid, signal.SIGINT)
    assert launcher.has_ended(60)
    assert launcher.read_status() == 128 + signal.SIGINT
    wait_for_end_of(pid)
    errors = (copy_of_project / "errors.txt").read_text()
    assert "Traceback" not in errors
    line = "ris: stopped by SIGINT; to go on: ris make-pseudolabels --refine --dataset"  # and not --force
    assert errors.splitlines()[-1].startswith(line)
    assert not list(runs.glob("pseudolabels/*.lock"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_data_set(tmp_path, write_tiny_card, launch):
    """Seven times the images: less than 45 MiB more, of which the allocator's whim is 30.

    Their pixels alone would take 70 MiB, the maps 200.
    """
    peaks: dict[tuple[str, int], int] = {}
    launcher = launch(tmp_path, 1000.0)
    for n_images in (40, 280):
        launcher.root = tmp_path / str(n_images)
        launcher.root.mkdir()
        write_tiny_card(launcher.root, train=n_images, val=1)
        for name in [command for command in COMMANDS if command not in ("pretrain-clip", "predict")]:
            launcher.run(COMMANDS[name], "--quiet")
            peaks[name, n_images] = launcher.peak_kib
    growth = {name: (peaks[name, 280] - peak) / 1024 for (name, n_images), peak in peaks.items() if n_images == 40}
    print({name: f"{peaks[name, 40] / 1024:.0f} MiB, {more:+.1f}" for name, more in growth.items()})
    assert max(growth.values()) < 45, growth


@pytest.mark.endurance
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("seed", "n_ranks", "victims"),
    [*((seed, 1, ("parent", "all")) for seed in range(4)), (4, 2, ("parent", "all", "0", "1"))],
    ids=["0", "1", "2", "3", "two-ranks"],
)
def test_every_command_killed_four_times(seed, n_ranks, victims, tmp_path, write_tiny_card, launch):
    """Four storms of 36 kills, and one of 32 under torchrun, where the victim may also be one rank of two."""
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    durations = {}
    launcher = launch(calm)
    for root in (calm, stormy):
        root.mkdir()
        card = write_tiny_card(root, train=6, val=2)
        text = card.read_text().replace("irn_epochs = 1", "irn_epochs = 3").replace("epochs = 1\nb", "epochs = 3\nb")
        card.write_text(text)
    names = list(COMMANDS)
    if n_ranks > 1:  # the data set is generated by one process
        names.remove("make-shapes")
        for launcher.root in (stormy, calm):
            launcher.run(COMMANDS["make-shapes"])
    for name in names:
        for workers in "10":
            anew = [] if name == "predict" else ["--force"]
            durations[name, workers] = launcher.run(COMMANDS[name], *anew, workers=workers, n_ranks=n_ranks)
    launcher.root = stormy
    kills = kill_at_random(launcher, names, 4, durations, random.Random(seed), n_ranks=n_ranks, victims=victims)
    assert kills.total() == 4 * len(names)
    check_same(calm, stormy)
