"""Parts of a network that torch.compile makes kernels of: fewer launches in a training step."""

from __future__ import annotations

from open_clip.modified_resnet import Bottleneck
from open_clip.transformer import Transformer
from torch import nn

from ris_pipeline.errors import RisError
from ris_pipeline.networks.parts.bilateral_prompt import BilateralPrompt
from ris_pipeline.networks.parts.pixel_attention import PixelAttention
from ris_pipeline.networks.step2 import ConvBnPRelu

_PARTS = (Bottleneck, Transformer, BilateralPrompt, PixelAttention, ConvBnPRelu)


def compile_parts(network: nn.Module) -> int:
    """Let torch.compile take over, in place, the parts that see tensors only; return how many there are.

    Not the whole step: it holds sentences, for each of which torch would compile it anew. Names and values of the
    weights stay, so that checkpoints fit both ways; results differ by rounding. The first steps wait for the compiler,
    again where lengths of sentences vary for the first time. Raises RisError where there is no such part.
    """
    n_parts = _compile_inside(network)
    if not n_parts:
        raise RisError("--compile knows no part of this network; leave it out")
    return n_parts


def _compile_inside(module: nn.Module) -> int:
    if isinstance(module, _PARTS):
        module.compile()
        return 1
    return sum(map(_compile_inside, module.children()))
