"""Errors of the machine, as far as they can be had the real ones."""

import errno
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.errors import RisError
from ris_pipeline.process.failures import explain_failure

HUGE = 10**15


def fill_disk():
    with Path("/dev/full").open("wb") as file:
        file.write(b"x" * 100_000)


def save_to_full_disk():
    with Path("/dev/full").open("wb") as file:
        torch.save({"x": torch.zeros(100_000)}, file)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: bytearray(HUGE),
        lambda: np.zeros(HUGE),
        lambda: torch.zeros(HUGE),
    ],
    ids=["python", "numpy", "torch"],
)
def test_out_of_memory_names_what_to_lower(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as error:
        allocate()
    check_memory_line(error.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
        cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 8 bytes"),
    ],
)
def test_out_of_memory_as_other_libraries_say_it(error):
    check_memory_line(error)


def check_memory_line(error):
    line = explain_failure(error, lower="batch_size (now 48)")
    assert line.startswith("out of memory (")
    assert line.endswith("; lower batch_size (now 48)")
    assert "\n" not in line


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
@pytest.mark.parametrize("write", [fill_disk, save_to_full_disk])
def test_a_full_disk(write):
    with pytest.raises(OSError, match="No space left") as error:
        write()
    assert explain_failure(error.value, Path("runs/x.partial")) == (
        "runs/x.partial: the disk is full; free some space, then run the same command to go on"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "disk is full"),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied; check its permissions"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), "/a/b: Read-only file system"),
        (OSError(errno.EIO, "Input/output error", "/a/b"), "/a/b: the disk reports an error"),
        (OSError(errno.EMFILE, "Too many open files"), r"too many open files; raise the limit \(ulimit -n\)"),
        (RuntimeError("[/x/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [::1]:2: Connection reset by "
                      "peer. This is typically caused by a remote worker hanging"), "another process of torchrun"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a worker process was killed"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "lower --workers or free memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
                      "workers are out of shared memory. Please try to raise your shared memory limit."), "/dev/shm"),
    ],
)  # fmt: skip
def test_other_errors_of_the_machine(error, line):
    found = explain_failure(error)
    assert found is not None
    assert re.search(line, found), found


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("y"), RuntimeError("size mismatch"), FileNotFoundError(2, "")]
)
def test_errors_of_the_program_are_none_of_these(error):
    assert explain_failure(error) is None


def test_a_stage_names_its_own_settings_and_keeps_what_it_made(tmp_path):
    request = Request(tmp_path, "shapes", "step1", {"batch_size": 48, "refs_per_image": 3}, {})
    settings = r"lower batch_size \(now 48\) or refs_per_image \(now 3\) or --workers"
    with pytest.raises(RisError, match=settings), publish(request) as work:
        allocate_in(work.path)
    assert (request.partial / "resume.pt").exists()


def allocate_in(folder):
    (folder / "resume.pt").touch()
    torch.zeros(HUGE)


def test_an_error_of_the_program_in_a_stage_stays_itself(tmp_path):
    with pytest.raises(KeyError), publish(Request(tmp_path, "shapes", "step1", {}, {})):
        raise KeyError("x")
