"""Small stand-ins for what is too large to test with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor, nn

from ris_pipeline.datasets import Annotation, Dataset, Expression, Image, Ref
from ris_pipeline.maps.rule import SEGMENTATION
from ris_pipeline.networks.clip import Clip

TINY: dict[str, Any] = {
    "embed_dim": 6,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
# The table of each compared method in a card; {clip} is a folder with a tiny CLIP, a ResNet, {vit} one with a ViT.
FROZEN_CLIP = 'clip = "{clip}"\nclip_weights = "none"\ninput_size = 64\n'
FROZEN_VIT = FROZEN_CLIP.replace("clip}", "vit}")
SUPERVISED = FROZEN_CLIP + "hidden = 16\nepochs = 2\nbatch_size = 6\n"
METHOD_TABLES = {
    "maskclip": FROZEN_CLIP,
    "maskclip-trained": SUPERVISED,
    "clip-es": FROZEN_VIT,
    "clip-es-trained": SUPERVISED + "confidence = 0.6\n",
    "car": FROZEN_VIT + "with_rivals = true\n",
    "amr": FROZEN_CLIP + 'backbone = "{clip}"\nbackbone_weights = "none"\nhidden = 8\n'
    "epochs = 2\ncam_epochs = 1\nbatch_size = 4\nlr = 0.1\n",
    "groupvit": 'weights = "none"\nside = 64\nwidth = 16\nheads = 2\ndepth = 1\nn_first_groups = 6\nn_groups = 3\n'
    "text_width = 16\ntext_heads = 2\ntext_layers = 1\nn_tokens = 20\nprojection = 16\nembed_dim = 8\n"
    "input_size = 64\nepochs = 2\nbatch_size = 4\nlr = 1e-3\n",
    "gbs": FROZEN_CLIP + 'text_encoder = "clip"\nvgg_weights = "none"\nwidth = 2\nepochs = 2\nbatch_size = 4\n',
    "wwbl": FROZEN_CLIP + 'aux_clip = "{clip}"\naux_weights = "none"\nvgg_weights = "none"\nwidth = 2\nepochs = 2\n'
    "batch_size = 6\n",
}


def build_random(config: dict[str, Any]) -> Clip:
    """CLIP starts with zeros in some scales; random values everywhere let no part go unnoticed."""
    torch.manual_seed(0)
    clip = Clip.from_config(config).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.normal_(std=0.1)
        for name, buffer in clip.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return clip


class Pyramid(nn.Module):
    """An image encoder that is not CLIP, laid out as a ResNet: c1 to c4 by 2×2 convolutions at strides 4 to 32."""

    level_channels = (2, 3, 4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 2, stride=2)
        self.bn1 = nn.BatchNorm2d(2)
        sizes = (2, *self.level_channels)
        for i in range(1, 5):
            setattr(self, f"layer{i}", nn.Conv2d(sizes[i - 1], sizes[i], 2, stride=2))

    def grid_side(self, side: int) -> int:
        return side // 32

    def levels(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        c1 = self.layer1(self.bn1(self.conv1(pixels)))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return c1, c2, c3, self.layer4(c3)


def make_noise(folder: Path, mask: dict[str, Any] | None = None) -> Dataset:
    """Three images of noise, 40×40, with two refs of two sentences each, 50 to 55; `mask` is the mask of each."""
    rng = np.random.default_rng(0)
    images, refs = {}, []
    for i in range(3):
        path = folder / f"{i}.png"
        Picture.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        images[i] = Image(i, path, (40, 40))
        for colour in ("red", "blue"):
            expressions = tuple(
                Expression(2 * len(refs) + k, f"{colour} thing {word} of {i}") for k, word in enumerate(("left", "top"))
            )
            refs.append(Ref(50 + len(refs), i, "train", expressions, (Annotation(None, mask),)))
    return Dataset("tiny", "train", images, tuple(refs))


def draw_epoch(plan, epoch):
    """The draws of a `Plan`'s batches in an epoch."""
    return [[plan.draw(ref, epoch) for ref in batch] for batch in plan.order_epoch(epoch)]


class ByHand:
    """What a responder has beside its answers, of images that are their own encodings."""

    rule, device, n_tokens, latin_only = SEGMENTATION, torch.device("cpu"), 9, True

    def find_cut(self, sentences: list[str]) -> list[str]:
        return []

    def encode_images(self, pixels: Tensor) -> list[Tensor]:
        return list(pixels)
