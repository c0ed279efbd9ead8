"""Checkpoints: a training that broke off goes on at its last one and ends in the same weights."""

from __future__ import annotations

import json
import os
import signal
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ris_pipeline import stops
from ris_pipeline.durable import fsync_path, replacing, write_bytes
from ris_pipeline.errors import RisError
from ris_pipeline.training.distributed import any_rank, is_orphaned, wait

RESUME = "resume.pt"
METRICS = "metrics.jsonl"
SECONDS_BETWEEN_CHECKPOINTS = 120.0


class Stateful(Protocol):
    """What torch's modules, optimisers and gradient scalers have in common."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class TrainingState:
    """All that a training needs to go on, kept in folder/resume.pt; and its log, folder/metrics.jsonl.

    The file holds the state of each of the named parts, the number of steps done and the length of the log:
    what was logged after the checkpoint is cut off when the training goes on there. Random numbers need no
    state, they are drawn from seed and step (`seed_step`, `Plan`).
    """

    def __init__(
        self, folder: Path, parts: Mapping[str, Stateful], *, is_writer: bool = True, n_ranks: int = 1
    ) -> None:
        """Of several processes (n_ranks) on one training all load, and one writes."""
        self.folder, self.parts, self.is_writer, self.n_ranks = folder, parts, is_writer, n_ranks
        self.n_done = 0
        self._saved_at = time.monotonic()

    def load(self) -> int:
        """Bring the parts to the last checkpoint, if there is one; returns the number of steps done.

        Raises RisError for a checkpoint that is damaged, of other networks or of another number of processes.
        """
        path = self.folder / RESUME
        log_bytes = 0
        if path.exists():
            state = _read(path)
            if state.get("n_ranks", self.n_ranks) != self.n_ranks:  # their batches are others
                raise RisError(
                    f"{path}: begun by {state['n_ranks']} processes, not {self.n_ranks}; go on with as many, "
                    "or begin anew with --force"
                )
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise RisError(f"{path}: a checkpoint of something else; begin anew with --force") from error
            self.n_done, log_bytes = int(state["n_done"]), int(state["log_bytes"])
        if self.is_writer and (self.folder / METRICS).exists():
            os.truncate(self.folder / METRICS, log_bytes)
        return self.n_done

    def step_done(self, **values: float) -> None:
        """Log the step's values; leave a checkpoint when it is time.

        Inside `stops.deferred` a signal is heeded here: a checkpoint, then Stopped is raised.
        """
        if self.is_writer:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.n_done, **values}) + "\n")
        self.n_done += 1
        is_stopping = any_rank(stops.asked() is not None or is_orphaned())
        if is_stopping or time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            self.save()
        if is_stopping:
            wait()  # torchrun kills all when the first one ends, and it may be the one that writes
            # Where it was another of the processes that was asked, it was by a batch system.
            raise stops.Stopped(stops.asked() or signal.SIGTERM)

    def save(self) -> None:
        """Leave a checkpoint: on the disk, whole, or the one before it stays."""
        self._saved_at = time.monotonic()
        if not self.is_writer:
            return
        log_bytes = 0
        if (self.folder / METRICS).exists():
            fsync_path(self.folder / METRICS)
            log_bytes = (self.folder / METRICS).stat().st_size
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with replacing(self.folder / RESUME) as file:
            torch.save({**state, "n_done": self.n_done, "n_ranks": self.n_ranks, "log_bytes": log_bytes}, file)

    def finish(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Leave the finished `weights` at `path` (safetensors) and remove the checkpoint."""
        if self.is_writer:
            save_weights(path, weights)
            (self.folder / RESUME).unlink(missing_ok=True)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the tensors to `path` as safetensors: on the disk, all of them or nothing."""
    # Not safetensors' own save_file: its files can be read by their owner alone, on any shared disk.
    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in weights.items()}))


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's random numbers on all devices for one step: the same whether or not a run broke off before it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
            damaged = archive.testzip()
        if damaged is None:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, NotImplementedError) as error:
        raise RisError(f"{path}: damaged checkpoint; begin anew with --force") from error
    raise RisError(f"{path}: damaged checkpoint ({damaged}); begin anew with --force")
