"""What a network costs for one image and one sentence: parameters, multiplications, time; of TRIS's also each part."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ris_pipeline.config import Step1Config, Step2Config
from ris_pipeline.methods import Method
from ris_pipeline.networks.load import build_step1, build_step2
from ris_pipeline.networks.referring import ReferringNetwork
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.process.device import autocast

WARM_UP, REPEATS = 2, 7  # passes before the clock counts, and behind a median
# Neither the values of the weights nor how they are trained changes what a network costs.
SHAPES = ("clip", "image_encoder", "input_size", "hidden", "decoder_width")
SENTENCE = " ".join(["a"] * 18)  # with start and end the 20 tokens of the paper's count

Run = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a part costs; `macs`: multiply-accumulates of its convolutions and matrix products."""

    part: str
    parameters: int
    macs: int
    ms: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a network, ready to run."""

    name: str
    parameters: tuple[str, ...]  # what the names of its parameters begin with; the first part that fits has them
    run: Run | None  # None: it is not used


def is_papers(config: Step1Config | Step2Config) -> bool:
    """Return whether a network of this configuration costs what the paper's does, which the defaults describe."""
    papers = type(config)()
    return all(getattr(config, key, None) == getattr(papers, key, None) for key in SHAPES)


def measure_cost(
    config: Step1Config | Step2Config, device: torch.device, precision: str, advance: Callable[[], object]
) -> list[Cost]:
    """Return the cost of each part of the configured network with random values, and of the whole as the last.

    `precision`: "fp32", "bf16" or "fp16". advance() is called after each of the WARM_UP + REPEATS passes.
    """
    network = _build(config).to(device).to(memory_format=torch.channels_last)
    times = measure_parts(network, config.input_size, precision, advance)
    counts = count_parts(network.to("meta"), config.input_size)
    return [Cost(*count, ms) for count, ms in zip(counts, times, strict=True)]


def count_network(config: Step1Config | Step2Config) -> tuple[int, int]:
    """Return the parameters and the multiply-accumulates of the configured network as a whole; nothing is computed."""
    return count_parts(_build(config).to("meta"), config.input_size)[-1][1:]


def _build(config: Step1Config | Step2Config) -> Step1 | Step2:
    network: Step1 | Step2
    if isinstance(config, Step1Config):
        network = build_step1(config.clip, hidden=config.hidden, image_encoder=config.image_encoder)
    else:
        network = build_step2(config.clip, widths=config.widths, image_encoder=config.image_encoder)
    return network.eval()


def measure_method(
    method: Method, config: Any, device: torch.device, precision: str, advance: Callable[[], object]
) -> Cost:
    """Return what a compared method's network costs as a whole, with random values; the others as in `measure_cost`.

    It encodes an image and a sentence and answers, with all that its answer needs: of a method that takes gradients,
    these are counted too.
    """
    run, n_parameters = _open_method(method, config, device)
    with torch.no_grad(), autocast(device, precision):
        macs = sum(count_macs(run).values())
        times = []
        for _ in range(WARM_UP + REPEATS):
            times.append(_time(run, device))
            advance()
    return Cost("all", n_parameters, macs, statistics.median(times[WARM_UP:]))


def count_method(method: Method, config: Any) -> tuple[int, int]:
    """Return the parameters and the multiply-accumulates of a compared method, as `measure_method`, in one pass."""
    run, n_parameters = _open_method(method, config, torch.device("cpu"))
    with torch.no_grad():
        return n_parameters, sum(count_macs(run).values())


def _open_method(method: Method, config: Any, device: torch.device) -> tuple[Run, int]:
    """Return a pass of a method with random values, and how many parameters count."""
    untrained = {field.name: None for field in fields(config) if field.name.endswith("weights")}
    responder = method.load(replace(config, **untrained), device)
    pixels = torch.randn(1, 3, responder.input_size, responder.input_size, device=device)
    pixels = pixels.to(memory_format=torch.channels_last)

    def run() -> None:
        (image,) = responder.encode_images(pixels)
        responder.respond(image, responder.encode_texts([SENTENCE]))

    modules = [value for value in vars(responder).values() if isinstance(value, nn.Module)]
    parameters = {parameter for module in modules for parameter in module.parameters()}
    if (uncounted := getattr(responder, "uncounted", None)) is not None:
        parameters -= set(uncounted.parameters())
    return run, sum(p.numel() for p in parameters)


def count_parts(network: Step1 | Step2, input_size: int) -> list[tuple[str, int, int]]:
    """Return (name, parameters, multiply-accumulates) of each part of a network, and of the whole as the last.

    The network is in evaluation mode. Any device will do; on the meta device nothing is computed and no memory used.
    """
    counts = []
    left = list(network.named_parameters())
    with torch.no_grad():
        for part in build_parts(network, input_size):
            own = [parameter for name, parameter in left if name.startswith(part.parameters)]
            left = [(name, parameter) for name, parameter in left if not name.startswith(part.parameters)]
            n_parameters = sum(parameter.numel() for parameter in own)
            counts.append((part.name, n_parameters, sum(count_macs(part.run).values())))
    assert not left, f"parameters of no part: {[name for name, _ in left]}"
    return [*counts, ("all", sum(n for _, n, _ in counts), sum(macs for _, _, macs in counts))]


def count_macs(run: Run | None, extras: dict[Any, Callable[..., int]] | None = None) -> dict[Any, int]:
    """Return {operation: multiply-accumulates} of the convolutions and matrix products of a call.

    `extras`: further operations, each with a function of FlopCounterMode's kind that counts two for each.
    """
    if run is None:
        return {}
    counter = FlopCounterMode(display=False, custom_mapping=extras)
    with counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return {operation: n // 2 for operation, n in counter.get_flop_counts().get("Global", {}).items()}


@torch.inference_mode()
def measure_parts(
    network: Step1 | Step2, input_size: int, precision: str, advance: Callable[[], object]
) -> list[float]:
    """Return the milliseconds of each part of a network in evaluation mode, and of all together as the last.

    They are medians of `REPEATS` passes on the network's device, each part waited for. advance() is called after each
    pass.
    """
    device = next(network.parameters()).device
    passes = []
    with autocast(device, precision):
        parts = build_parts(network, input_size)
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
    own = ("conv", "bn", "layer") if network.clip.is_resnet else ("",)
    return [
        Part(
            "image encoder",
            tuple(f"{visual}{name}" for name in own) if has_own else ("image_encoder.",),
            partial(network.levels, pixels),
        ),
        Part("text encoder", _TEXT, partial(network.clip.words, tokens)),
        Part("unused of CLIP", (visual, "clip.model.logit_"), None),
    ]


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
        Part("bilateral prompt", ("attn_fusion.",), partial(network.attn_fusion.prompt_each, V, T[None])),
        Part("score", ("logit_scale",), score),
    ]


def _step2_parts(network: Step2, pixels: Tensor, tokens: Tensor) -> list[Part]:
    levels, words = network.levels(pixels), network.clip.words(tokens)[0]
    return [
        Part("word attention", ("attention",), partial(network.attend, levels, words)),
        Part(
            "decoder, heads", ("reduced_", "output", "final_seg"),
            partial(network.decode, network.attend(levels, words)),
        ),
    ]  # fmt: skip


_TEXT = tuple(
    f"clip.model.{name}"
    for name in ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection", "text.")
)
_OWN_PARTS: dict[type, Callable[..., list[Part]]] = {Step1: _step1_parts, Step2: _step2_parts}


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
