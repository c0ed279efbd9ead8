"""Reader processes: they prepare the next batches of a training while a step is computed, and end with it."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from ris_pipeline.errors import RisError
from ris_pipeline.process.failures import explain_failure

B = TypeVar("B", covariant=True)


class Source(Protocol[B]):
    """The batches of a training, numbered from 0 through all its epochs; each a pure function of its number."""

    @property
    def n_steps(self) -> int:
        """The number of steps of the training."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps after which the network may be validated."""

    def __getitem__(self, step: int, /) -> B:
        """Return the batch of a step."""

    def describe(self, step: int) -> str:
        """Return what a step reads and which setting to lower, for the error of a loss that is not finite."""


@runtime_checkable
class Outlined(Protocol[B]):
    """A source that knows a batch before it has read it."""

    def outline(self, step: int, /) -> Any:
        """Return what the batch of a step is made of."""

    def read(self, outline: Any, /) -> B:
        """Return the batch."""


def read_ahead(source: Source[B], steps: Iterable[int], workers: int, *, pinned: bool = False) -> Generator[B]:
    """Yield the batches of the steps in order, prepared by `workers` processes; 0: by this one.

    The outlines of an `Outlined` source are made by this process: to look at the records of a data set is to write to
    them, to their reference counts, and each reader would in time have a copy of them all.
    `pinned`: in memory from which a CUDA device copies without waiting; a thread moves them there ahead.
    Close the generator (`contextlib.closing`): that ends the processes, whatever happened in between. Raises the
    RisError that a process met, and one for shared memory that is full.
    """
    loader: DataLoader[Any] = DataLoader(
        _Guarded(source),
        batch_size=None,
        sampler=map(source.outline, steps) if isinstance(source, Outlined) else steps,
        collate_fn=_keep,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=_prepare_process if workers else None,
        generator=torch.Generator(),  # or each run would take a number of the training's own
    )
    for item in loader:
        if isinstance(item, RisError):
            raise item
        yield item


class _Guarded(TorchDataset[Any]):
    """A source that gives an error back as a value: torch would wrap it in the text of a traceback."""

    def __init__(self, source: Source[Any]) -> None:
        self.source = source

    def __getitem__(self, step: Any) -> Any:
        try:
            item = self.source.read(step) if isinstance(self.source, Outlined) else self.source[step]
            if get_worker_info() is not None:
                _share(item)
            return item
        except RisError as error:
            return error
        except (OSError, MemoryError, RuntimeError) as error:
            line = explain_failure(error)
            if line is None:
                raise
            return RisError(line)


def _keep(item: Any) -> Any:
    return item


def _share(item: Any) -> None:
    """Move an item's tensors to shared memory.

    Sending would do it as well, but in a thread whose failure nobody notices: with /dev/shm full, the training would
    wait for ever.
    """
    if isinstance(item, Tensor):
        item.share_memory_()  # type: ignore[no-untyped-call]
    elif isinstance(item, tuple | list):
        for part in item:
            _share(part)
    elif is_dataclass(item):
        for field in fields(item):
            _share(getattr(item, field.name))


def _prepare_process(_: int) -> None:
    # The records are shared with the training's process, page by page, until one of the two writes to them. Collecting
    # garbage writes to every object that it looks at, and it does not look at what is frozen.
    gc.freeze()
    torch.set_num_threads(1)
    # A terminal or a batch system sends its signal to all processes. The training ends its step, leaves a checkpoint
    # and closes the reader; a reader that died before would end the step in the middle. One whose training is gone
    # notices within 5 s (torch looks).
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
