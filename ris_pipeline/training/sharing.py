"""What the processes of one training do together: its batch is shared among them, and counts as one.

The rule behind it: each process multiplies its own part of a loss by the number of processes, since
DistributedDataParallel takes the mean of their gradients. `weight_of` and `mean_over_ranks` have that in them. A
process alone gets back what it gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean of the processes' `x`, of one shape, as float where x is int; no gradient flows through it."""
    if not torch.distributed.is_initialized():
        return x
    return _total(x.detach()) / torch.distributed.get_world_size()


def weight_of(n: int, device: torch.device) -> float:
    """Return the weight of a mean over `n` things here in the mean over all processes' things, times their number."""
    if not torch.distributed.is_initialized():
        return 1.0
    total = int(_total(torch.tensor(n, device=device)))
    return n * torch.distributed.get_world_size() / max(total, 1)


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, (ΣN, …), in their order, and the place of the first own one.

    `x` (N, …), with another N in each process if need be. What the processes' losses say of a row comes back to it as
    one gradient, as in CLIP's training.
    """
    if not torch.distributed.is_initialized():
        return x, 0
    rank, n_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    counts = torch.zeros(n_ranks, dtype=torch.int64, device=x.device)
    counts[rank] = len(x)
    n_rows = _total(counts).tolist()
    first = sum(n_rows[:rank])
    mine = torch.cat([x.new_zeros(first, *x.shape[1:]), x, x.new_zeros(sum(n_rows[rank + 1 :]), *x.shape[1:])])
    return add_over_ranks(mine), first


def gather_list(items: Sequence[T]) -> tuple[list[T], int]:
    """Return the items of all processes, in their order, and the place of the first own one."""
    if not torch.distributed.is_initialized():
        return list(items), 0
    parts: list[Sequence[T]] = [()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, list(items))
    first = sum(len(part) for part in parts[: torch.distributed.get_rank()])
    return [item for part in parts for item in part], first


def add_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of the processes' `x`, of one shape; its gradient is the sum of theirs."""
    return cast("Tensor", _Sum.apply(x)) if torch.distributed.is_initialized() else x


def share_batch_norm(network: nn.Module) -> None:
    """Let each BatchNorm that is in training mode take its statistics from the batch of all processes (TRIS).

    The modules are replaced, their names and parameters stay.
    """
    if not torch.distributed.is_initialized():
        return
    replaced: dict[nn.Module, nn.Module] = {}
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and child.training:
                if child not in replaced:
                    replaced[child] = _shared(child)
                setattr(module, name, replaced[child])


def _shared(norm: _BatchNorm) -> nn.Module:
    if norm.running_mean is not None and norm.running_mean.is_cuda:
        return cast("nn.Module", nn.SyncBatchNorm.convert_sync_batchnorm(norm))  # type: ignore[no-untyped-call]
    # torch's own is for GPUs only.
    shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine)
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        setattr(shared, name, value)
    return shared


class SharedBatchNorm(_BatchNorm):
    """BatchNorm by the mean and variance over the batch of all processes, whose parts may be of different sizes."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` float (B, C, …) normalised; in evaluation mode by the running statistics."""
        if not self.training:
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        dims = [0, *range(2, x.ndim)]
        of_channel = [1, -1, *[1] * (x.ndim - 2)]
        n = float(_total(torch.tensor(float(x.numel() // x.shape[1]), device=x.device)))
        mean = add_over_ranks(wide.sum(dims)) / n
        centred = wide - mean.view(of_channel)
        variance = add_over_ranks(centred.square().sum(dims)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (n / max(n - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
            centred = centred * scale.view(of_channel) + self.bias.view(of_channel)
        else:
            centred = centred * scale.view(of_channel)
        return centred.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions."""


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return _total(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> Tensor:
        return _total(gradients[0])


def _total(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total
