"""A diagnosis of installation, weights, data and machine: what is wrong, and what to do about it."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import requires
from pathlib import Path
from typing import Literal

from ris_pipeline.artifacts.files import fsync_path
from ris_pipeline.chain.context import Context
from ris_pipeline.config import PseudolabelConfig, Step1Config, Step2Config
from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.process.failures import explain_failure
from ris_pipeline.process.packages import find_version

REINSTALL = "rm -r .venv and make again, or: pip install -c constraints.txt -e . (torch and torchvision in one command)"
GIGABYTE = 1e9
FREE_FOR_RUNS = 5.0  # GB; a run on RefCOCO leaves about one, and a resumable checkpoint beside it
SHARED_MEMORY = Path("/dev/shm")
SLOW = 3.0  # GFLOP/s; two cores that six other processes kept busy came to 9


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    state: Literal["ok", "warning", "broken"]
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the finding as text, the remedy on a line of its own."""
        indent = "\n" + " " * 24
        return f"{self.state:<9}{self.name:<15}{self.found}" + (f"{indent}→ {self.remedy}" if self.remedy else "")


def diagnose(context: Context) -> list[Finding]:
    """Return a finding per check. Nothing is downloaded."""
    # Weights are looked for in the caches of open_clip and timm.
    os.environ["HF_HUB_OFFLINE"] = "1"
    context = replace(context, assignments={})  # a diagnosis could not say of which stage
    return [finding for name, check in CHECKS.items() for finding in _examine(name, check, context)]


def _examine(name: str, check: Callable[[Context], Iterator[Finding]], context: Context) -> list[Finding]:
    """Return the findings of a check; a check that fails is itself a finding."""
    try:
        return list(check(context))
    except RisError as error:
        return [Finding(name, "broken", str(error))]
    except Exception as error:  # a broken installation can raise anything
        first_line = (str(error).splitlines() or [""])[0]
        return [Finding(name, "broken", f"{type(error).__name__}: {first_line}", REINSTALL)]


def check_packages(context: Context) -> Iterator[Finding]:
    """Compare the installed packages with what pyproject.toml asks for."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in requires("ris-pipeline") or () if "extra ==" not in line]
    faults = []
    for package in needed:
        found = find_version(package.name)
        if found is None:
            faults.append(f"{package.name} is not installed")
        elif not package.specifier.contains(found, prereleases=True):
            faults.append(f"{package.name} {found} where {package.specifier} is needed")
    if faults:
        yield Finding("packages", "broken", "; ".join(faults), REINSTALL)
    else:
        named = ("torch", "torchvision", "open_clip_torch", "timm")
        shown = ", ".join(f"{name} {find_version(name)}" for name in named)
        found = f"{len(needed)} as pyproject.toml asks: {shown}, …; Python {platform.python_version()} in {sys.prefix}"
        yield Finding("packages", "ok", found)


def check_torchvision(context: Context) -> Iterator[Finding]:
    """Call a compiled operator of torchvision, which loads only beside the torch that it was built for."""
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept == [0, 2]:
        yield Finding("torchvision", "ok", "its operators load beside this torch")
    else:
        yield Finding("torchvision", "broken", f"nms keeps {kept} of three boxes instead of [0, 2]", REINSTALL)


def check_device(context: Context) -> Iterator[Finding]:
    """Describe the device that --device stands for."""
    import torch

    device = context.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = properties.total_memory / GIGABYTE
        half = "has bf16" if torch.cuda.is_bf16_supported() else "no bf16: stay with --precision fp32"
        yield Finding("device", "ok", f"{properties.name}, {memory:.0f} GB, CUDA {torch.version.cuda}, {half}")
    elif device.type == "cpu" and context.device_name == "auto" and shutil.which("nvidia-smi"):
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        remedy = "update the driver, or install the torch and torchvision that fit it (pytorch.org lists them)"
        yield Finding("device", "warning", f"cpu, though an NVIDIA driver is here; torch is {build}", remedy)
    else:
        yield Finding("device", "ok", f"{device}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")


def check_speed(context: Context) -> Iterator[Finding]:
    """Time a 3×3 convolution of 64 channels, as the image encoders have many."""
    import torch

    device = context.device
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(device).to(memory_format=torch.channels_last)
    pixels = torch.zeros(4, 64, 80, 80, device=device).contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(10):
            start = time.perf_counter()
            layer(pixels).sum().item()  # .item() waits for the device
            seconds.append(time.perf_counter() - start)
    speed = 2 * 64 * 64 * 9 * 4 * 80 * 80 / min(seconds) / 1e9
    found = f"3×3 convolution: {speed:,.0f} GFLOP/s"
    if speed < SLOW:
        yield Finding("speed", "warning", found, "is the machine busy, or OMP_NUM_THREADS set? see docs/benchmarks.md")
    else:
        yield Finding("speed", "ok", found)


def check_weights(context: Context) -> Iterator[Finding]:
    """Load the networks of the data set's configuration, and name the activation of each CLIP."""
    from ris_pipeline.networks.backbones import TIMM_NAMES

    step1 = context.resolve(Step1Config, "step1")
    step2 = context.resolve(Step2Config, "step2")
    labels = context.resolve(PseudolabelConfig, "pseudolabels")
    needed: dict[tuple[str, str | None, bool], list[str]] = {}
    for user, name, weights, is_clip in (
        ("step1", step1.clip, step1.clip_weights, True),
        ("step1", step1.image_encoder, step1.image_encoder_weights, False),
        ("step1", step1.aux_clip, step1.aux_weights, True),
        ("step2", step2.clip, step2.clip_weights, True),
        ("step2", step2.image_encoder, step2.image_encoder_weights, False),
        ("pseudolabels", labels.irn_backbone, labels.irn_weights, labels.irn_backbone not in TIMM_NAMES),
    ):
        if name not in (None, "clip"):
            needed.setdefault((str(name), weights, is_clip), []).append(user)
    for (name, weights, is_clip), users in needed.items():
        label = f"{name}{f' ({weights})' if weights else ''} of {', '.join(dict.fromkeys(users))}"
        try:
            yield _look_at_weights(name, weights, label, is_clip=is_clip)
        except DownloadError:
            remedy = "downloaded at first use; without a network, name a local file: docs/weights.md"
            yield Finding("weights", "warning", f"{label}: not on this machine yet", remedy)
        except RisError as error:
            yield Finding("weights", "broken", f"{label}: {error}", "docs/weights.md")


def _look_at_weights(name: str, weights: str | None, label: str, *, is_clip: bool) -> Finding:
    from open_clip.transformer import QuickGELU

    from ris_pipeline.networks.backbones import load_timm_network
    from ris_pipeline.networks.weights.clip_weights import load_clip
    from ris_pipeline.networks.weights.tensors import read_weights

    if not is_clip:
        load_timm_network(name, weights)
        return Finding("weights", "ok", f"{label}: {'found' if weights else 'random values, as configured'}")
    clip = load_clip(name, weights)
    quick = any(isinstance(module, QuickGELU) for module in clip.model.modules())
    found = f"{label}: activation {'QuickGELU' if quick else 'GELU'}"
    file = Path(weights) if weights else None
    if file and file.is_file() and quick and not read_weights(file).is_openai:
        remedy = "right for OpenAI's values; for those of another training use the name without -quickgelu"
        return Finding("weights", "warning", f"{found}, by the name alone: the file does not say who made it", remedy)
    return Finding("weights", "ok", found)


def check_data(context: Context) -> Iterator[Finding]:
    """Compare the data set with its card."""
    from ris_pipeline.datasets import describe_missing
    from ris_pipeline.datasets.check import COUNTS, check_dataset

    card = context.card
    check = check_dataset(card, context.data_root)
    if check.absent:
        remedy = describe_missing(card, context.data_root, check.absent)
        yield Finding("data", "warning", f"{card.name}: not here yet", remedy)
    elif check.faults:
        counts = ", ".join(f"{len(faults):,} {kind}" for kind, faults in check.faults.items() if kind != COUNTS)
        wrong = [fault.text.partition("; ")[0] for fault in check.faults.get(COUNTS, ())]
        found = f"{card.name}, {len(check.images):,} images: {counts}" if counts else "; ".join(wrong)
        yield Finding("data", "broken", found, "`ris data check` lists all")
    else:
        counts = ", ".join(f"{split.split} {split.n_expressions:,}" for split in check.splits)
        yield Finding("data", "ok", f"{card.name}: sentences as its card says: {counts}")


def check_opencv(context: Context) -> Iterator[Finding]:
    """Import OpenCV, whose build for desktops needs a library that servers lack."""
    try:
        import cv2
    except ImportError as error:
        yield Finding("opencv", "broken", str(error), explain_failure(error) or REINSTALL)
    else:
        yield Finding("opencv", "ok", cv2.__version__)


def check_shared_memory(context: Context) -> Iterator[Finding]:
    """See whether the batches that readers hold ready fit into /dev/shm; containers often have 64 MB of it."""
    config = context.resolve(Step1Config, "step1")
    # Each reader holds two batches of float32 pixels ready (torch), and one is in use.
    needed = (2 * context.workers + 1) * config.batch_size * 3 * config.input_size**2 * 4
    if not SHARED_MEMORY.is_dir() or context.workers == 0:
        yield Finding("shared memory", "ok", "not used")
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    found = f"{free / 1e6:,.0f} MB free in {SHARED_MEMORY}; {context.workers} readers of step1 take {needed / 1e6:,.0f}"
    if free < needed:
        yield Finding("shared memory", "warning", found, "docker: --shm-size=1g; or lower --workers (0 needs none)")
    else:
        yield Finding("shared memory", "ok", found)


def check_disk(context: Context) -> Iterator[Finding]:
    """See how much space is left where the artifacts go."""
    folder = _existing(context.runs)
    free = shutil.disk_usage(folder).free / GIGABYTE
    if free < FREE_FOR_RUNS:
        yield Finding("disk", "warning", f"{free:.1f} GB left at {folder}", "make room, or put --runs elsewhere")
    else:
        yield Finding("disk", "ok", f"{free:,.0f} GB left at {folder}")


def check_writing(context: Context) -> Iterator[Finding]:
    """Write a file, a lock and a link where the artifacts go."""
    folder = _existing(context.runs)
    try:
        with tempfile.TemporaryDirectory(prefix=".ris-doctor-", dir=folder) as name:
            lock, link = Path(name) / "lock", Path(name) / "latest"
            link.symlink_to(lock.name)
            with lock.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fsync_path(lock)
                fsync_path(Path(name))  # a folder: some network disks cannot
    except OSError as error:
        remedy = "put --runs on a disk of this machine that you may write to"
        what = f"{folder}: no files, links, locks or fsync there ({error.strerror})"
        yield Finding("writing", "broken", what, remedy)
    else:
        yield Finding("writing", "ok", f"files, links, locks and fsync at {folder}")


def _existing(path: Path) -> Path:
    """Return the path, or the nearest of its parents that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


CHECKS: dict[str, Callable[[Context], Iterator[Finding]]] = {
    "packages": check_packages,
    "opencv": check_opencv,
    "torchvision": check_torchvision,
    "device": check_device,
    "speed": check_speed,
    "weights": check_weights,
    "data": check_data,
    "shared memory": check_shared_memory,
    "disk": check_disk,
    "writing": check_writing,
}
