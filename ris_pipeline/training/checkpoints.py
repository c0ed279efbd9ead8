"""Checkpoints: an interrupted training resumes at its last one and ends in the same weights."""

from __future__ import annotations

import io
import json
import math
import signal
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ris_pipeline.artifacts.files import replacing, write_bytes
from ris_pipeline.artifacts.layout import RESUME, TRAINING_LOG
from ris_pipeline.errors import RisError
from ris_pipeline.process import signals as stops
from ris_pipeline.process.ranks import any_rank, broadcast, is_orphaned, wait

SECONDS_BETWEEN_CHECKPOINTS = 120.0


class Stateful(Protocol):
    """What torch's modules, optimisers and gradient scalers have in common."""

    def state_dict(self) -> Any:
        """Return what `load_state_dict` takes."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take over a state."""


class Best:
    """A copy of the weights of the best epoch so far, kept in the checkpoint."""

    def __init__(self) -> None:
        self.value = -math.inf
        self.weights: dict[str, Tensor] = {}

    def offer(self, value: float, network: nn.Module) -> None:
        """Copy the network's weights where `value` is the highest so far."""
        if value > self.value:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            self.value, self.weights = value, weights

    def state_dict(self) -> dict[str, Any]:
        """Return the value and the weights."""
        return vars(self)

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take over the value and the weights."""
        self.value, self.weights = state_dict["value"], state_dict["weights"]


class TrainingState:
    """All that a training needs to resume, kept in folder/resume.pt; and its log, folder/metrics.jsonl.

    The file holds the state of each of the named parts, the number of steps done, and the log so far, which is
    restored when the training resumes. Random numbers need no state: they are drawn from seed and step
    (`seed_step`, `Plan`).
    """

    def __init__(self, folder: Path, parts: Mapping[str, Stateful], *, is_writer: bool = True) -> None:
        """Keep the state of `parts`, by name. `is_writer`: true on rank 0, which alone writes."""
        self.folder, self.parts, self.is_writer = folder, parts, is_writer
        self.n_done = 0
        self.is_finished = False  # as `finish` left it
        self._saved_at = time.monotonic()

    def load(self) -> int:
        """Bring the parts to the last checkpoint, if there is one; return the number of steps done.

        Several processes take the one that rank 0 reads, so that the others need not see its disk. Raises RisError for
        a checkpoint that is damaged or of other networks.
        """
        path = self.folder / RESUME
        log = ""
        data = broadcast(lambda: np.fromfile(path, np.uint8) if path.exists() else np.empty(0, np.uint8))
        if len(data) or (self.is_writer and path.exists()):
            state = _read(data.tobytes(), path)
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
                self.n_done, self.is_finished, log = state["n_done"], state["is_finished"], state["log"]
            except (KeyError, RuntimeError, ValueError) as error:
                raise RisError(f"{path}: a checkpoint of other networks; start over with --force") from error
        if self.is_writer and (log or self._log.exists()):
            write_bytes(self._log, log.encode())
        return self.n_done

    @property
    def _log(self) -> Path:
        return self.folder / TRAINING_LOG

    def step_done(self, **values: float) -> None:
        """Log the step's values; leave a checkpoint when it is time.

        Inside `stops.deferred` a signal takes effect here: after a checkpoint, Stopped is raised.
        """
        if self.is_writer:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.n_done, **values}) + "\n")
        self.n_done += 1
        is_stopping = any_rank(stops.asked() is not None or is_orphaned())
        if is_stopping or time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            self.save()
        if is_stopping:
            wait()  # torchrun kills all when the first one ends, and it may be the one that writes
            # Where another process received the signal, a batch system sent it.
            raise stops.Stopped(stops.asked() or signal.SIGTERM)

    def save(self) -> None:
        """Leave a checkpoint: on the disk, whole, or the one before it stays."""
        self._saved_at = time.monotonic()
        if not self.is_writer:
            return
        state = {
            **{name: part.state_dict() for name, part in self.parts.items()},
            "n_done": self.n_done,
            "is_finished": self.is_finished,
            "log": self._log.read_text(encoding="utf-8") if self._log.exists() else "",
        }
        with replacing(self.folder / RESUME) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch says that the archive was cut short; its context says why
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def finish(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Leave the finished `weights` at `path` (safetensors), and a checkpoint from which they are written again.

        A run that is killed before it publishes them need not trust what lies there: a checkpoint has checksums.
        """
        self.is_finished = True
        self.save()
        if self.is_writer:
            save_weights(path, weights)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the tensors to `path` as safetensors: on the disk, all of them or nothing."""
    # Not safetensors' own save_file: its files can be read by their owner alone, on any shared disk.
    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in weights.items()}))


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's random numbers on all devices for one step: the same in a run that was interrupted."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def _read(data: bytes, path: Path) -> dict[str, Any]:
    """Return the state in the bytes of a checkpoint; `path` names it in errors."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch itself does not compare the checksums
            damaged = archive.testzip()
        if damaged is None:
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return state
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, NotImplementedError) as error:
        raise RisError(f"{path}: damaged checkpoint; start over with --force") from error
    raise RisError(f"{path}: damaged checkpoint ({damaged}); start over with --force")
