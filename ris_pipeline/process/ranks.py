"""Several processes for one training, as torchrun starts them: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed

from ris_pipeline.errors import RisError

_LAUNCHER = os.getppid()
_has_joined = False


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among n_ranks; rank 0 writes."""

    rank: int
    n_ranks: int
    local_rank: int  # the number of its GPU on this machine

    def choose_device(self, device: torch.device) -> torch.device:
        """Return the device of this process: of several on GPUs, each has its own."""
        if device.type != "cuda" or self.n_ranks == 1:
            return device
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own


ALONE = Ranks(0, 1, 0)


def find_ranks() -> Ranks:
    """Return the place that torchrun gives this process; ALONE without torchrun.

    Raises RisError where only a part of torchrun's variables is set.
    """
    n_ranks = int(os.environ.get("WORLD_SIZE", 1))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if n_ranks > 1 and missing:
        raise RisError(
            f"WORLD_SIZE is set, but not {', '.join(missing)}: start several processes by torchrun "
            "(torchrun --nproc-per-node 2 -m stages.cli train-step1), or unset WORLD_SIZE"
        )
    return Ranks(int(os.environ.get("RANK", 0)), n_ranks, int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Connect the processes in the block; nothing happens for a process alone."""
    if ranks.n_ranks == 1:
        yield
        return
    global _has_joined
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    _has_joined = True
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def has_joined() -> bool:
    """Return whether this process has begun to work with others; until then all do the same, and print the same."""
    return _has_joined


def wait() -> None:
    """Wait until all processes have come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def is_orphaned() -> bool:
    """Return whether this is one of several processes and torchrun, which would end them, is gone."""
    return torch.distributed.is_initialized() and os.getppid() != _LAUNCHER


def any_rank(value: bool) -> bool:
    """Return whether the value is true in any of the processes; all of them must call it."""
    return bool(_find_largest(int(value))[0])


def is_same_everywhere(value: int) -> bool:
    """Return whether all processes have the same value; all of them must call it."""
    largest, smallest_negated = _find_largest(value, -value)
    return largest == -smallest_negated


def _find_largest(*values: int) -> list[int]:
    """Return the largest of each value over the processes."""
    if not torch.distributed.is_initialized():
        return list(values)
    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    largest = torch.tensor(values, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return [int(value) for value in largest]
