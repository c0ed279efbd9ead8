"""The chain on a generated data set of RefCOCO's size: seconds of each stage, memory of each process over time.

    PYTHONPATH=. python tests/whole_size.py FOLDER

By hand; Linux only. FOLDER gets data, runs and memory.csv, a line for each process and second. Networks are tiny and
images have 64×64 pixels: whether memory grows with a data set depends on neither. Step-1 has random values, so that its
training need not end, and Step-2 learns from true masks, so that the refinement need not: the two are stopped after a
while.
"""

import csv
import json
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from conftest import TINY_CLIP
from large import write_pictures, write_refcoco
from ris_pipeline.artifacts.layout import WEIGHTS
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.chain.context import open_context
from ris_pipeline.config import Step1Config
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import step1_from_config
from ris_pipeline.networks.weights.clip_weights import save_compact

ROOT = Path(__file__).resolve().parents[1]
SIDE = 64
SHARES = {"train": 0.848, "val": 0.152}  # of the refs: RefCOCO's train, and its other splits as one
AUX_CLIP = {
    **TINY_CLIP,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 16, "head_width": 8, "patch_size": 32},
}
CARD = """
name = "large"
format = "refer"
partition = "unc"
annotations = "refer/refcoco"
images = "train2014"
[splits]
train = "any"
val = "any"
[config.step1]
clip = "{folder}/clip"
clip_weights = "none"
aux_clip = "{folder}/aux"
aux_weights = "none"
input_size = 64
hidden = 16
epochs = 1
[config.pseudolabels]
irn_backbone = "{folder}/clip"
irn_weights = "none"
irn_images = 200
irn_epochs = 1
irn_crop = 64
radius = 4
log2_steps = 4
[config.step2]
clip = "{folder}/clip"
clip_weights = "none"
input_size = 64
decoder_width = 8
epochs = 1
"""
COMMANDS = {  # seconds after which it is stopped, 0: never
    "dump-responses": 0,
    "make-pseudolabels --no-refine": 0,
    "train-step2 --oracle": 0,
    "score --split val": 0,
    "score --split train --stage pseudolabels": 0,
    "status": 0,
    "make-pseudolabels --refine": 900,
    "train-step1 --force": 900,
}


def write_inputs(folder: Path) -> Path:
    """Data, two CLIPs and a Step-1 of random values; the card."""
    torch.manual_seed(0)
    for name, config in (("clip", TINY_CLIP), ("aux", AUX_CLIP)):
        (folder / name).mkdir(parents=True)
        (folder / name / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        save_compact(Clip.from_config(config), folder / name / "model.safetensors", range(0, 49408, 97))
    card = folder / "large.toml"
    card.write_text(CARD.format(folder=folder))
    write_refcoco(folder / "data", SHARES, (SIDE, SIDE))
    write_pictures(folder / "data" / "train2014", SIDE)
    (folder / "runs" / "large").mkdir(parents=True)
    context = open_context(card, data_root=folder / "data", runs=folder / "runs")
    config = context.resolve(Step1Config, "step1")
    with publish(context.request("step1", config)) as work:
        save_file(step1_from_config(config).state_dict(), work.path / WEIGHTS)
    return card


def list_processes(root: int) -> Iterator[tuple[int, str]]:
    """The process and all below it: pid and role."""
    waiting = [(root, "main")]
    while waiting:
        pid, role = waiting.pop()
        yield pid, role
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in map(int, children):
                words = Path(f"/proc/{child}/cmdline").read_text()
                kind = "tracker" if "resource_tracker" in words else "worker" if "spawn_main" in words else "reader"
                waiting.append((child, kind))
        except OSError:  # it has ended meanwhile
            continue


def read_memory(pid: int) -> tuple[float, float] | None:
    """MB by proportional share, and of pages that no other process has; None where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    kb = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return kb["Pss"] / 1024, (kb["Private_Clean"] + kb["Private_Dirty"]) / 1024


def run(command: str, limit: int, options: list[str], writer: Any) -> None:
    """Run a command, sample the memory of its processes every second, and print what it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "stages.cli", *command.split(), *options], cwd=ROOT)
    samples = defaultdict(list)
    while process.poll() is None:
        seconds = time.perf_counter() - start
        together = 0.0
        for pid, role in list_processes(process.pid):
            if (memory := read_memory(pid)) is not None:
                pss, uss = memory
                writer.writerow([command, f"{seconds:.1f}", pid, role, f"{pss:.1f}", f"{uss:.1f}"])
                samples[role, pid].append((seconds, uss))
                together += pss
        samples["all", 0].append((seconds, together))
        if limit and seconds > limit:
            process.send_signal(signal.SIGTERM)
            process.wait()
        time.sleep(1)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert limit or process.returncode == 0, command
    print(f"{command}: {seconds:.0f} s, of the processor {busy:.0f} s", flush=True)
    for (role, pid), values in samples.items():
        if len(values) > 20:
            tenths = [np.median([mb for _, mb in part]) for part in np.array_split(np.array(values), 10)]
            own = "together (PSS)" if role == "all" else f"{role} {pid} (USS)"
            peak = max(mb for _, mb in values)
            print(f"  {own}: peak {peak:.0f} MB, medians {' '.join(f'{mb:.0f}' for mb in tenths)}", flush=True)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    card = write_inputs(folder)
    places = ["--dataset", str(card), "--data-root", str(folder / "data"), "--runs", str(folder / "runs")]
    with (folder / "memory.csv").open("w", buffering=1) as file:
        writer = csv.writer(file)
        writer.writerow(["command", "seconds", "pid", "role", "pss_mb", "uss_mb"])
        for command, limit in COMMANDS.items():
            run(command, limit, places, writer)


if __name__ == "__main__":
    main()
