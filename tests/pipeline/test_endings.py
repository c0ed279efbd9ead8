"""Whatever goes wrong, a command ends: one line, exit status 1, no process left after ten seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from watchdog import run_ris

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see what still lives"),
    pytest.mark.timeout(600),
]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def places(root):
    return ["--dataset", root / "tiny.toml", "--data-root", root / "data", "--runs", root / "runs", "--device", "cpu"]


def images_of(root):
    """Of the split train, which comes first."""
    return sorted((root / "data" / "tiny" / "images").glob("*.jpg"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["missing", "unreadable"])
@pytest.mark.parametrize("command", [["train-step1"], ["make-pseudolabels", "--refine"], ["train-step2"]], ids="-".join)
def test_an_image_that_cannot_be_read(copy_of_project, command, damage, workers):
    root = copy_of_project
    image = images_of(root)[3]
    if damage == "missing":
        image.unlink()
    else:
        spoil(image)
    ended = run_ris(*command, "--force", *places(root), "--workers", workers)
    assert ended.status == 1
    assert image.name in ended.error


@pytest.mark.parametrize("command", [["train-step1", "--set", "epochs=50"], ["train-step2", "--set", "epochs=50"]],
                         ids=["step1", "step2"])  # fmt: skip
def test_a_reader_that_is_killed(copy_of_project, command, tmp_path):
    """Through a sitecustomize that kills the second reader from within, after its first batch."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, threading, time\n"
        "def die_as_reader():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def watch():\n"
        "    threading.Timer(1.0, die_as_reader).start()\n"
        "os.register_at_fork(after_in_child=watch)\n"
    )
    root = copy_of_project
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    ended = run_ris(*command, *places(root), "--workers", 2, env={"PYTHONPATH": path})
    assert ended.status == 1
    assert "killed" in ended.error


def spoil(image):
    """Make it unreadable, of the size and time of before: it counts as the picture that all was made from."""
    status = image.stat()
    image.write_bytes(image.read_bytes()[:40].ljust(status.st_size, b"\0"))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [Path.unlink, spoil], ids=["missing", "unreadable"])
def test_an_image_under_torchrun(copy_of_project, damage, workers):
    """Missing, both processes notice before they begin; unreadable, the one whose share it is in."""
    root = copy_of_project
    image = images_of(root)[3]
    damage(image)
    ended = run_ris("train-step1", "--set", "epochs=20", *places(root), "--workers", workers, launcher=TORCHRUN)
    assert ended.status == 1
    lines = [line for line in ended.stderr.splitlines() if image.name in line]
    assert len(lines) == 1, ended.stderr


SMALL_SHM = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"', "sh")


@pytest.mark.parametrize("command", [["train-step1"], ["train-step2"]], ids="-".join)
def test_a_small_shared_memory(copy_of_project, command):
    """As docker's, whose 64 MB are too few for batches of 48 pictures."""
    if subprocess.run([*SMALL_SHM, "true"], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    ended = run_ris(*command, "--force", *places(copy_of_project), "--workers", 2, prefix=SMALL_SHM)
    assert ended.status == 1
    assert "/dev/shm" in ended.error


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fills_in_mid_training(copy_of_project, tmp_path, workers):
    """On a file system of 3 MB that checkpoints do not fit on; one is due after every step."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.abc, importlib.util, sys\n"
            "class Finder(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            "        if name != 'ris_pipeline.training.checkpoints':\n"
            "            return None\n"
            "        sys.meta_path.remove(self)\n"
            "        spec = importlib.util.find_spec(name)\n"
            "        load = spec.loader.exec_module\n"
            "        def exec_module(module):\n"
            "            load(module)\n"
            "            module.SECONDS_BETWEEN_CHECKPOINTS = 0.0\n"
            "        spec.loader.exec_module = exec_module\n"
            "        return spec\n"
            "sys.meta_path.insert(0, Finder())\n"
        )
        root = copy_of_project
        path = f"{tmp_path}:{Path(__file__).parents[2]}"
        options = [*places(root)[:4], "--runs", small, "--device", "cpu", "--set", "epochs=50"]
        ended = run_ris("train-step1", *options, "--workers", workers, env={"PYTHONPATH": path})
        assert ended.status == 1
        assert "disk is full" in ended.error
    finally:
        subprocess.run(["umount", small], check=True)
