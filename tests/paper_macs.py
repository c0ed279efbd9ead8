"""Multiply-accumulates as the paper counts them: by fvcore 0.1.5, of the released code.

The released code also runs CLIP's attention pooling, whose result nothing reads, takes both halves of the bilateral
prompt for one text, and W_w of the pixel attention at every position instead of every word. fvcore traces a network,
which drops what does not reach the output: the pooling, and in Step-2 the text projection. It does not see the products
inside torch's fused attention. It adds 2 per value of a BatchNorm, 5 of an InstanceNorm or LayerNorm, 4 of a bilinear
upsampling.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.cost import Run, build_parts, count_macs
from ris_pipeline.networks.parts.pixel_attention import PixelAttention
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2

aten = torch.ops.aten


def count_as_paper(network: Step1 | Step2, input_size: int) -> dict[str, int]:
    """Return the count of each part of a network in evaluation mode, "all" of them together."""
    runs = {part.name: part.run for part in build_parts(network, input_size)}
    unseen = {"image encoder": {aten.bmm}, "text encoder": {aten.bmm}}  # attention by MATH is two bmm
    if isinstance(network, Step1):
        side = input_size // 32
        V, T = torch.randn(1, 1024, side, side, device="meta"), torch.randn(1, 1024, device="meta")
        runs["bilateral prompt"] = partial(network.attn_fusion, V, T)
    else:
        unseen["text encoder"] |= {aten.mm}
        sides = ((8, 512), (16, 1024), (32, 2048))
        levels = [torch.randn(1, C, input_size // s, input_size // s, device="meta") for s, C in sides]
        words = torch.randn(1, network.clip.n_tokens, 512, device="meta")
        attentions = (network.attention2, network.attention3, network.attention4)
        runs["word attention"] = lambda: [
            attend_as_released(attention, V, words) for attention, V in zip(attentions, levels, strict=True)
        ]
    counts = {}
    with torch.no_grad():
        for name, run in runs.items():
            counts[name] = count_run_as_paper(run, unseen.get(name, set()))
    return {**counts, "all": sum(counts.values())}


def count_run_as_paper(run: Run | None, unseen: Collection[Any] = ()) -> int:
    """Return the count of a call, without the operations that are `unseen`."""
    macs = count_macs(run, {
        aten.native_batch_norm: _count_batch_norm, aten.native_layer_norm: _count_layer_norm,
        aten.upsample_bilinear2d: _count_upsampling,
    })  # fmt: skip
    return sum(n for operation, n in macs.items() if operation not in unseen)


def attend_as_released(attention: PixelAttention, V: Tensor, words: Tensor) -> Tensor:
    """Return what `attention` returns, computed in the released order: W_w at each position.

    `V` float (N, C, h, w), `words` float (N, T, word_width).
    """
    words = words.transpose(1, 2)
    Q = attention.ins_q(attention.Wq(V)).flatten(2).transpose(1, 2)  # (N, hw, C)
    A = torch.softmax(Q @ attention.Wk(words) / math.sqrt(V.shape[1]), dim=-1)
    looked_up = (A @ attention.Wv(words).transpose(1, 2)).transpose(1, 2).reshape(V.shape)
    G = attention.ins_w(attention.Ww(looked_up))
    return F.relu(attention.Wo(F.relu(attention.Wm(V)) * G))


# torch counts floating-point operations, two for each multiply-accumulate; so do these.
def _count_batch_norm(x: torch.Size, *others: Any, out_shape: Any = None, **_: Any) -> int:
    # native_batch_norm(input, weight, bias, mean, variance, training, …); InstanceNorm is one "in training".
    return 2 * x.numel() * (5 if others[4] else 2)


def _count_layer_norm(x: torch.Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * x.numel() * 5


def _count_upsampling(*_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(2 * math.prod(out_shape) * 4)
