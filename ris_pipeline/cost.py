"""What Step-1 and Step-2 cost for one image and one sentence: parameters, multiplications and time of their parts.

Three counts of multiply-accumulates (MACs) stand side by side:

- what is computed here: convolutions and matrix products;
- what the released code computes: it also runs CLIP's attention pooling and throws the result away, and in
  Step-2 takes W_w at every position instead of every word;
- the released code as fvcore counts it, which is the paper's convention (TRIS, ICCV 2023, Table 2). fvcore traces the
  network, which drops what does not reach the output (the pooling, and Step-2's text projection); it does not
  see the products inside torch's fused attention; it adds 2 per value of a BatchNorm, 5 of an InstanceNorm
  or LayerNorm, 4 of a bilinear upsampling.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ris_pipeline.networks.parts.pixel_attention import PixelAttention
from ris_pipeline.networks.referring import ReferringNetwork
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2

aten = torch.ops.aten
PRODUCTS = frozenset({aten.convolution, aten.addmm, aten.mm, aten.bmm, aten.baddbmm})
WARM_UP, REPEATS = 2, 7  # passes before the clock counts, and behind a median

Run = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one part costs: see the module's docstring for the three counts. `ms` is None where it was not timed."""

    part: str
    parameters: int
    macs: int
    macs_released: int
    macs_fvcore: int
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a network, ready to run."""

    name: str
    parameters: tuple[str, ...]  # what the names of its parameters begin with; the first part that fits has them
    run: Run | None  # what is computed here, None: nothing
    released: Run | None = None  # what the released code computes, where it is something else
    unseen: frozenset[Any] = frozenset()  # operations that fvcore does not count in this part


def count_parts(network: Step1 | Step2, input_size: int) -> list[Cost]:
    """Return the cost of each part of a network in evaluation mode, and of the whole network as the last one.

    Any device will do; on the meta device nothing is computed and no memory is used.
    """
    costs = []
    named = list(network.named_parameters())
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for part in build_parts(network, input_size):
            own = [p for p in named if p[0].startswith(part.parameters)]
            named = [p for p in named if not p[0].startswith(part.parameters)]
            here, released = _count(part.run), _count(part.released or part.run)
            fvcore = {op: n for op, n in released.items() if op not in part.unseen}
            costs.append(
                Cost(
                    part.name,
                    sum(parameter.numel() for _, parameter in own),
                    _sum_products(here),
                    _sum_products(released),
                    sum(fvcore.values()),
                )
            )
    assert not named, f"parameters of no part: {[name for name, _ in named]}"
    return [*costs, _add(costs)]


@torch.inference_mode()
def measure_parts(network: Step1 | Step2, input_size: int, advance: Callable[[], object]) -> list[float]:
    """Return the milliseconds of each part of a network in evaluation mode, and of all together as the last.

    They are medians of `REPEATS` passes on the network's device, each part waited for. advance() is called after each
    pass.
    """
    device = next(network.parameters()).device
    parts = build_parts(network, input_size)
    passes = []
    for _ in range(WARM_UP + REPEATS):
        passes.append([_time(part.run, device) for part in parts])
        advance()
    kept = passes[WARM_UP:]
    return [*map(statistics.median, zip(*kept, strict=True)), statistics.median(map(sum, kept))]


def build_parts(network: Step1 | Step2, input_size: int) -> list[Part]:
    """Return the parts of a network in the order in which they run, on random pixels and a sentence of all tokens."""
    device = next(network.parameters()).device
    pixels = torch.randn(1, 3, input_size, input_size, device=device).to(memory_format=torch.channels_last)
    tokens = torch.arange(1, network.clip.n_tokens + 1, device=device)[None]  # the largest is the end token
    return [*_encoders(network, pixels, tokens), *_OWN_PARTS[type(network)](network, pixels, tokens)]


def _encoders(network: ReferringNetwork, pixels: Tensor, tokens: Tensor) -> list[Part]:
    visual = "clip.model.visual."
    has_own = network.image_encoder is None
    # Step-2 has no use for the sentence, so tracing drops the text projection.
    text_unseen = frozenset({aten.bmm} if isinstance(network, Step1) else {aten.bmm, aten.mm})
    parts = [
        Part(
            "image encoder",
            tuple(f"{visual}{name}" for name in ("conv", "bn", "layer")) if has_own else ("image_encoder.",),
            partial(network.levels, pixels),
            unseen=frozenset({aten.bmm}),
        ),
        Part("text encoder", _TEXT, partial(network.clip.words, tokens), unseen=text_unseen),
    ]
    pooling = getattr(network.clip.model.visual, "attnpool", None) if has_own else None
    released = partial(pool_as_released, pooling, network.levels(pixels)[-1]) if pooling is not None else None
    every = frozenset({*PRODUCTS, *_FVCORE_EXTRAS})
    return [*parts, Part("unused of CLIP", (visual, "clip.model.logit_scale"), None, released, every)]


def _step1_parts(network: Step1, pixels: Tensor, tokens: Tensor) -> list[Part]:
    c4, sentence = network.levels(pixels)[-1], network.clip.words(tokens)[1]
    V, T = F.normalize(network.vis_project(c4), dim=1), F.normalize(network.lan_project(sentence), dim=-1)
    prompted = network.attn_fusion.prompt_each(V, T[None])

    def project() -> None:
        F.normalize(network.vis_project(c4), dim=1)
        F.normalize(network.lan_project(sentence), dim=-1)

    def score() -> None:
        F.interpolate(network.compare(*prompted), pixels.shape[-2:], mode="bilinear", align_corners=False)

    return [
        Part("projections", ("vis_project.", "lan_project."), project),
        Part(
            "bilateral prompt",
            ("attn_fusion.",),
            partial(network.attn_fusion.prompt_each, V, T[None]),
            partial(network.attn_fusion, V, T),
        ),
        Part("score", ("logit_scale",), score),
    ]


def _step2_parts(network: Step2, pixels: Tensor, tokens: Tensor) -> list[Part]:
    levels, words = network.levels(pixels), network.clip.words(tokens)[0]
    attended = network.attend(levels, words)

    def attend_as_released() -> None:
        for attention, level in zip(
            (network.attention2, network.attention3, network.attention4), levels[1:], strict=True
        ):
            pixel_attention_as_released(attention, level, words)

    return [
        Part("word attention", ("attention",), partial(network.attend, levels, words), attend_as_released),
        Part("decoder, heads", ("reduced_", "output", "final_seg"), partial(network.decode, attended)),
    ]


def pool_as_released(pooling: Any, c4: Tensor) -> Tensor:
    """Return what CLIP's attention pooling gives for every position, float (1 + h·w, B, D), of c4 (B, C, h, w).

    The positional table is left out: it is not multiplied with anything.
    """
    cells = c4.flatten(2).permute(2, 0, 1)
    cells = torch.cat([cells.mean(dim=0, keepdim=True), cells])  # (1 + hw, B, C)
    length, n_images, n_channels = cells.shape
    heads = (length, n_images * pooling.num_heads, n_channels // pooling.num_heads)
    q, k, v = (
        project(cells).reshape(heads).transpose(0, 1) for project in (pooling.q_proj, pooling.k_proj, pooling.v_proj)
    )
    looked_up = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(heads[2]), dim=-1) @ v
    pooled: Tensor = pooling.c_proj(looked_up.transpose(0, 1).reshape(cells.shape))
    return pooled


def pixel_attention_as_released(attention: PixelAttention, V: Tensor, words: Tensor) -> Tensor:
    """Return what `attention` returns, computed in the released order: W_w at each position.

    `V` float (N, C, h, w), `words` float (N, T, word_width).
    """
    words = words.transpose(1, 2)
    Q = attention.ins_q(attention.Wq(V)).flatten(2).transpose(1, 2)  # (N, hw, C)
    A = torch.softmax(Q @ attention.Wk(words) / math.sqrt(V.shape[1]), dim=-1)
    looked_up = (A @ attention.Wv(words).transpose(1, 2)).transpose(1, 2).reshape(V.shape)
    G = attention.ins_w(attention.Ww(looked_up))
    return F.relu(attention.Wo(F.relu(attention.Wm(V)) * G))


_TEXT = tuple(
    f"clip.model.{name}"
    for name in ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
)
_OWN_PARTS: dict[type, Callable[..., list[Part]]] = {Step1: _step1_parts, Step2: _step2_parts}


def _count_batch_norm(x: torch.Size, *others: Any, out_shape: Any = None, **_: Any) -> int:
    # native_batch_norm(input, weight, bias, mean, variance, training, …); InstanceNorm is one "in training".
    return 2 * x.numel() * (5 if others[4] else 2)


def _count_layer_norm(x: torch.Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * x.numel() * 5


def _count_upsampling(*_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(2 * math.prod(out_shape) * 4)


# Twice fvcore's counts, because the counter's own are of floating-point operations, two for each multiply-accumulate.
_FVCORE_EXTRAS = {
    aten.native_batch_norm: _count_batch_norm,
    aten.native_layer_norm: _count_layer_norm,
    aten.upsample_bilinear2d: _count_upsampling,
}


def _count(run: Run | None) -> dict[Any, int]:
    """Return {operation: count as one per multiply-accumulate} of what `run` does."""
    if run is None:
        return {}
    counter = FlopCounterMode(display=False, custom_mapping=_FVCORE_EXTRAS)
    with counter:
        run()
    return {op: n // 2 for op, n in counter.get_flop_counts().get("Global", {}).items()}


def _sum_products(counts: dict[Any, int]) -> int:
    return sum(n for op, n in counts.items() if op not in _FVCORE_EXTRAS)


def _add(costs: Iterable[Cost]) -> Cost:
    columns = zip(*((c.parameters, c.macs, c.macs_released, c.macs_fvcore) for c in costs), strict=True)
    return Cost("all", *(sum(column) for column in columns))


def _time(run: Run | None, device: torch.device) -> float:
    """Return the milliseconds of one call."""
    if run is None:
        return 0.0
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return 1000 * (time.perf_counter() - start)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
