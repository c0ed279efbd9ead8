"""Several processes on one training, as torchrun starts them: gloo on CPUs, NCCL on GPUs."""

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
    """Which of n_ranks processes this one is; rank 0 writes."""

    rank: int
    n_ranks: int
    local_rank: int  # on this machine: which GPU is its own

    def choose_device(self, device: torch.device) -> torch.device:
        """Return the device of this process: of several on GPUs, each has its own."""
        if device.type != "cuda" or self.n_ranks == 1:
            return device
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own


ALONE = Ranks(0, 1, 0)


def find_ranks() -> Ranks:
    """Return what torchrun says of this process; alone where there is no torchrun.

    Raises RisError where the environment holds a part of what torchrun sets.
    """
    environment = os.environ
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if int(environment.get("WORLD_SIZE", 1)) > 1 and missing:
        raise RisError(
            f"WORLD_SIZE is set, but not {', '.join(missing)}: start several processes by torchrun "
            "(torchrun --nproc-per-node 2 -m stages.cli train-step1), or unset WORLD_SIZE"
        )
    return Ranks(
        int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)), int(environment.get("LOCAL_RANK", 0))
    )


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Let the processes talk to each other inside the block; nothing happens for one alone."""
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
    """Return whether this process has begun to work with others: until then all of them do, and say, the same."""
    return _has_joined


def wait() -> None:
    """Return when all processes are here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def is_orphaned() -> bool:
    """Return whether this is one of several processes and torchrun, which would end them, is gone."""
    return torch.distributed.is_initialized() and os.getppid() != _LAUNCHER


def any_rank(value: bool) -> bool:
    """Return whether the value is true in any of the processes; each of them has to ask."""
    if not torch.distributed.is_initialized():
        return value
    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    flag = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def is_same_everywhere(value: int) -> bool:
    """Return whether all processes have the same value, which is not negative; each of them has to ask."""
    if not torch.distributed.is_initialized():
        return True
    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    extremes = torch.tensor([value, -value], device=device)
    torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX)
    return bool(extremes[0] == -extremes[1])
