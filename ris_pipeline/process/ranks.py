"""Several processes for one command, as torchrun starts them, on one machine or on several.

They meet at torchrun's store of keys and values: there work is handed out item by item, what the first one decides is
read by the others, and whatever ends one of them is told to all. Trainings also exchange tensors: by NCCL on GPUs, else
by gloo. For a process alone each function here does nothing, or its part of the work is all of it.

torch is imported only where there are several processes.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ris_pipeline.errors import RisError
from ris_pipeline.process import signals

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
P = ParamSpec("P")

_LAUNCHER = os.getppid()
_PIECE = 1 << 22  # bytes; torch's store refuses a value of more than 8 MB
_ENDED = "ended"  # the key of the first process that ended before its time, and of the signal that ended it
_team: _Team | None = None
_n_teams = 0


class OthersEndedError(RisError):
    """Another process has ended with an error, which it has told."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among n_ranks; rank 0 writes."""

    rank: int
    n_ranks: int
    local_rank: int  # the number of its GPU on this machine

    def choose_device(self, device: torch.device) -> torch.device:
        """Return the device of this process: of several on GPUs, each has its own. RisError where there are too few."""
        if device.type != "cuda" or self.n_ranks == 1:
            return device
        import torch

        if self.local_rank >= torch.cuda.device_count():
            raise RisError(
                f"process {self.local_rank} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}: start as many processes as GPUs (--nproc-per-node), or use --device cpu"
            )
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    def part_of(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of the items, which follow one another; the parts differ in length by one at most.

        Raises RisError for fewer items than processes.
        """
        if len(items) < self.n_ranks:
            raise RisError(
                f"a batch of {len(items)} cannot be shared by {self.n_ranks} processes: start fewer, or raise its size"
            )
        start, stop = (rank * len(items) // self.n_ranks for rank in (self.rank, self.rank + 1))
        return items[start:stop]


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
def joined() -> Iterator[None]:
    """Work with the other processes of torchrun in the block, or as a decorator in the function; all have to enter it.

    What one of them raises ends all: the first to raise raises that, the others Stopped where that was a signal,
    otherwise OthersEndedError. A block inside another one is part of it.
    """
    global _team, _n_teams
    ranks = find_ranks()
    if ranks.n_ranks == 1 or _team is not None:
        yield
        return
    _n_teams += 1
    _team = _Team(ranks, _n_teams)
    try:
        yield
        _team.leave()
    except BaseException as error:
        end = _team.end(error)
        if end is None:
            raise
        raise end from error
    finally:
        _team = None


@contextmanager
def connected(device: torch.device) -> Iterator[Ranks]:
    """Let the joined processes exchange tensors in the block, as trainings do; yield the place of this one."""
    if _team is None:
        yield ALONE
        return
    import torch
    from torch.distributed.distributed_c10d import PrefixStore

    backend = "nccl" if device.type == "cuda" else "gloo"
    store = PrefixStore(_team.next_key(), _team.store)
    torch.distributed.init_process_group(backend, store=store, rank=_team.ranks.rank, world_size=_team.ranks.n_ranks)
    try:
        yield _team.ranks
    except BaseException as error:
        _team.end(error)  # told before the connection breaks, which the others would take for the reason
        raise
    finally:
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Return whether this process is the one that writes what all have made."""
    return _team is None or _team.ranks.rank == 0


def wait() -> None:
    """Wait until all processes have come here."""
    if _team is not None:
        _team.wait()


def in_turn(make: Callable[[], T]) -> T:
    """Return what `make` gives, called by the first process, then by the first of each other machine, then by the rest.

    So each may download or write for those after it.
    """
    turn = 0 if _team is None or _team.ranks.rank == 0 else 1 if _team.ranks.local_rank == 0 else 2
    for _ in range(turn):
        wait()
    made = make()
    for _ in range(2 - turn):
        wait()
    return made


def agree(make: Callable[[], T]) -> T:
    """Return in all processes what `make` gives in the first, which alone calls it; or raise the RisError it raises."""
    return make() if _team is None else _team.agree(make)


def agreed(function: Callable[P, T]) -> Callable[P, T]:
    """Let the first process call the function for all."""

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        return agree(lambda: function(*arguments, **options))

    return call


def share(items: Sequence[T]) -> Iterator[T]:
    """Return an iterator over the items, of which each goes to the process that is the first to be ready for it.

    They have to be the same in all processes. Fast and slow devices so have work until the last item.
    """
    return iter(items) if _team is None else _team.share(_team.next_key(), items)


def gather(value: T) -> list[T]:
    """Return the values of all processes, by rank, in the first; nothing in the others."""
    return [value] if _team is None else _team.gather(value)


@contextmanager
def counted(advance: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """Yield count(n), which tells `advance` what all processes have done; after the block all of it is done."""
    if _team is None:
        yield advance
        return
    team, key, shown = _team, _team.next_key(), 0

    def count(n: int) -> None:
        nonlocal shown
        done = team.store.add(key, n)
        if done > shown:
            advance(done - shown)
            shown = done

    yield count
    wait()
    count(0)


class _Team:
    """The processes that work together, in one block of `joined`; keys are named by the order of their use."""

    def __init__(self, ranks: Ranks, number: int) -> None:
        from torch.distributed.distributed_c10d import PrefixStore

        self.ranks = ranks
        self.store: Store = PrefixStore(f"ris/{number}", _open_store())
        self.n_keys = 0
        self.is_deciding = False  # for all

    def next_key(self) -> str:
        self.n_keys += 1
        return str(self.n_keys)

    def check(self) -> None:
        """Raise what ends this process because another one, the launcher or a signal ends it."""
        signals.check()
        if self.store.check([_ENDED]):
            raise self._read_end()
        if is_orphaned():
            raise signals.Stopped(signal.SIGTERM)

    def poll(self, is_there: Callable[[], bool]) -> None:
        pause = 0.001
        while not is_there():
            self.check()
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def wait(self) -> None:
        if self.is_deciding:
            return
        key = self.next_key()
        if self.store.add(key, 1) < self.ranks.n_ranks:
            self.poll(lambda: self.store.add(key, 0) == self.ranks.n_ranks)

    def leave(self) -> None:
        # The first one may be where the store is: it goes last.
        n_left = self.store.add("left", 1)
        if self.ranks.rank == 0 and n_left < self.ranks.n_ranks:
            self.poll(lambda: self.store.add("left", 0) == self.ranks.n_ranks)

    def end(self, error: BaseException) -> RisError | signals.Stopped | None:
        """Tell the others that this process ends; return what it has to raise instead, where another was before it."""
        number = error.number if isinstance(error, signals.Stopped) else 0
        own = f"{self.ranks.rank} {number}"
        try:
            if self.store.compare_set(_ENDED, "", own).decode() == own:
                return None
            return self._read_end()
        except RuntimeError:  # the store has gone before
            return signals.Stopped(signal.SIGTERM) if is_orphaned() else None

    def _read_end(self) -> RisError | signals.Stopped:
        rank, number = map(int, self.store.get(_ENDED).split())
        return signals.Stopped(number) if number else OthersEndedError(f"process {rank} has ended with an error")

    def agree(self, make: Callable[[], T]) -> T:
        if self.is_deciding:
            return make()
        key = self.next_key()
        answer: tuple[T | None, RisError | None]
        if self.ranks.rank > 0:
            answer = self._take(key)
        else:
            self.is_deciding = True
            try:
                answer = make(), None
            except RisError as error:
                answer = None, error
            finally:
                self.is_deciding = False
            self._put(key, answer)
        value, fault = answer
        if fault is not None:
            raise fault
        return value  # type: ignore[return-value]

    def share(self, key: str, items: Sequence[T]) -> Iterator[T]:
        while (k := self.store.add(key, 1) - 1) < len(items):
            self.check()
            yield items[k]

    def gather(self, value: T) -> list[T]:
        key = self.next_key()
        if self.ranks.rank > 0:
            self._put(f"{key}/{self.ranks.rank}", value)
            return []
        return [value, *(self._take(f"{key}/{rank}") for rank in range(1, self.ranks.n_ranks))]

    def _put(self, key: str, value: Any) -> None:
        data = pickle.dumps(value)
        pieces = range(0, len(data), _PIECE)
        for k, start in enumerate(pieces):
            self.store.set(f"{key}/piece-{k}", data[start : start + _PIECE])  # type: ignore[arg-type]  # bytes are meant
        self.store.set(key, str(len(pieces)))

    def _take(self, key: str) -> Any:
        self.poll(lambda: self.store.check([key]))
        pieces = [self.store.get(f"{key}/piece-{k}") for k in range(int(self.store.get(key)))]
        return pickle.loads(b"".join(pieces))


@functools.cache
def _open_store() -> Store:
    """Return the store at which torchrun's processes meet: in torchrun itself, or in rank 0."""
    from torch.distributed.rendezvous import rendezvous

    store: Store = next(rendezvous("env://"))[0]
    return store


def is_orphaned() -> bool:
    """Return whether this is one of several processes and torchrun, which would end them, is gone."""
    return _team is not None and os.getppid() != _LAUNCHER


def any_rank(value: bool) -> bool:
    """Return whether the value is true in any of the connected processes; all of them must call it."""
    import torch

    if not torch.distributed.is_initialized():
        return value
    largest = torch.tensor(int(value), device=_find_exchange())
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return bool(largest)


def broadcast(read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return in all connected processes the bytes that `read` gives in the first, which alone calls it."""
    import torch

    if not torch.distributed.is_initialized():
        return read()
    is_sender = torch.distributed.get_rank() == 0
    sent = torch.from_numpy(read()) if is_sender else torch.empty(0, dtype=torch.uint8)
    n_bytes = torch.tensor(len(sent), device=_find_exchange())
    torch.distributed.broadcast(n_bytes, 0)
    data = sent.to(_find_exchange()) if is_sender else sent.new_empty(int(n_bytes), device=_find_exchange())
    torch.distributed.broadcast(data, 0)
    return data.cpu().numpy()


def _find_exchange() -> torch.device:
    """Return the device whose tensors the connected processes exchange."""
    import torch

    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
