"""Checkpoints as TRIS and IRNet released them, with random values; and their evaluation by plain functions.

Nothing here calls the project: names and shapes are written out, the networks are functions of a state dict.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
import torchvision.transforms.functional as tvf
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
START, END = 49406, 49407


@dataclass(frozen=True)
class Sizes:
    """What differs between CLIPs of one kind."""

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    embed: int = 1024
    words: int = 512
    text_layers: int = 12
    hidden: int = 1024


RN50 = Sizes()
TINY = Sizes(layers=(1, 2, 1, 1), width=8, embed=24, words=64, text_layers=2, hidden=32)
TINY_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


# --- names and shapes -------------------------------------------------------------------------------------------


def with_bias(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def batch_norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
    return {f"{name}.{part}": shape for part, shape in {**parts, "num_batches_tracked": ()}.items()}


def clip_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """OpenAI's CLIP with a ResNet."""
    w, e = s.width, 32 * s.width
    shapes = {"positional_embedding": (77, s.words), "text_projection": (s.words, s.embed), "logit_scale": ()}
    for i, (n_in, n_out) in enumerate([(3, w // 2), (w // 2, w // 2), (w // 2, w)], start=1):
        shapes |= {f"visual.conv{i}.weight": (n_out, n_in, 3, 3)} | batch_norm(f"visual.bn{i}", n_out)
    n_in = w
    for stage, n_blocks in enumerate(s.layers):
        n = w * 2**stage
        for i in range(n_blocks):
            block = f"visual.layer{stage + 1}.{i}"
            shapes |= {f"{block}.conv1.weight": (n, n_in, 1, 1)} | batch_norm(f"{block}.bn1", n)
            shapes |= {f"{block}.conv2.weight": (n, n, 3, 3)} | batch_norm(f"{block}.bn2", n)
            shapes |= {f"{block}.conv3.weight": (4 * n, n, 1, 1)} | batch_norm(f"{block}.bn3", 4 * n)
            if i == 0:
                shapes |= {f"{block}.downsample.0.weight": (4 * n, n_in, 1, 1)}
                shapes |= batch_norm(f"{block}.downsample.1", 4 * n)
            n_in = 4 * n
    shapes |= {"visual.attnpool.positional_embedding": (7 * 7 + 1, e)}
    for name in ("k_proj", "q_proj", "v_proj"):
        shapes |= with_bias(f"visual.attnpool.{name}", e, e)
    shapes |= with_bias("visual.attnpool.c_proj", s.embed, e)
    for i in range(s.text_layers):
        block = f"transformer.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * s.words, s.words), f"{block}.attn.in_proj_bias": (3 * s.words,)}
        shapes |= with_bias(f"{block}.attn.out_proj", s.words, s.words)
        shapes |= with_bias(f"{block}.ln_1", s.words) | with_bias(f"{block}.ln_2", s.words)
        shapes |= with_bias(f"{block}.mlp.c_fc", 4 * s.words, s.words)
        shapes |= with_bias(f"{block}.mlp.c_proj", s.words, 4 * s.words)
    return shapes | {"token_embedding.weight": (49408, s.words)} | with_bias("ln_final", s.words)


def step1_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """A released Step-1."""
    c = s.hidden
    shapes = {f"backbone.{name}": shape for name, shape in clip_shapes(s).items()} | {"logit_scale": ()}
    shapes |= with_bias("vis_project", c, 32 * s.width, 1, 1) | with_bias("lan_project", c, s.embed)
    for i in (1, 2, 3):
        shapes |= with_bias(f"attn_fusion.v_proj{i}.0", c, c, 1, 1) | with_bias(f"attn_fusion.v_proj{i}.1", c)
        shapes |= with_bias(f"attn_fusion.t_proj{i}.0", c, c)
    shapes |= with_bias("attn_fusion.v_output.0", c, c, 1, 1) | with_bias("attn_fusion.v_output.1", c)
    return shapes | with_bias("attn_fusion.t_output.0", c, c)


def conv_bn_prelu(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.conv.weight": (n_out, n_in, 3, 3), f"{name}.relu.weight": (1,)} | batch_norm(f"{name}.bn", n_out)


def step2_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """A released Step-2."""
    shapes = {f"backbone.{name}": shape for name, shape in clip_shapes(s).items()}
    channels = [4 * s.width * 2**i for i in range(4)]
    for level in (2, 3, 4):
        c, name = channels[level - 1], f"attention{level}"
        shapes |= with_bias(f"{name}.Wk", c, s.words, 1) | with_bias(f"{name}.Wv", c, s.words, 1)
        for part in ("Wq", "Wm", "Ww", "Wo"):
            shapes |= with_bias(f"{name}.{part}", c, c, 1, 1)
        shapes |= with_bias(f"{name}.ins_q", c) | with_bias(f"{name}.ins_w", c)
    for i, n_out in enumerate((64, 128, 256, 512)):
        shapes |= conv_bn_prelu(f"reduced_c{i + 1}", channels[i], n_out)
    for i, (n_in, n_out) in {4: (512, 256), 3: (256, 128), 2: (128, 64), 1: (64, 32)}.items():
        shapes |= conv_bn_prelu(f"output{i}", n_in, n_out)
    for i, (n_in, n_out) in {1: (32, 32), 2: (64, 32), 3: (128, 64), 4: (256, 64)}.items():
        shapes |= conv_bn_prelu(f"final_seg{i}.0", n_in, n_out) | {f"final_seg{i}.1.weight": (1, n_out, 1, 1)}
    return shapes


def irn_shapes() -> dict[str, tuple[int, ...]]:
    """IRNet under its first names: torchvision's ResNet-50, and the heads."""
    shapes = {"resnet50.conv1.weight": (64, 3, 7, 7)} | batch_norm("resnet50.bn1", 64)
    n_in = 64
    for stage, n_blocks in enumerate((3, 4, 6, 3)):
        n = 64 * 2**stage
        for i in range(n_blocks):
            block = f"resnet50.layer{stage + 1}.{i}"
            for k, shape in {1: (n, n_in, 1, 1), 2: (n, n, 3, 3), 3: (4 * n, n, 1, 1)}.items():
                shapes |= {f"{block}.conv{k}.weight": shape} | batch_norm(f"{block}.bn{k}", shape[0])
            if i == 0:
                shapes |= {f"{block}.downsample.0.weight": (4 * n, n_in, 1, 1)}
                shapes |= batch_norm(f"{block}.downsample.1", 4 * n)
            n_in = 4 * n
    for i, c in enumerate((64, 256, 512, 1024, 2048), start=1):
        shapes |= {f"fc_edge{i}.0.weight": (32, c, 1, 1)} | with_bias(f"fc_edge{i}.1", 32)
    shapes |= with_bias("fc_edge6", 1, 160, 1, 1)
    for i, (c, n) in enumerate([(64, 64), (256, 128), (512, 256), (1024, 256), (2048, 256), (768, 256), (448, 256)]):
        shapes |= {f"fc_dp{i + 1}.0.weight": (n, c, 1, 1)} | with_bias(f"fc_dp{i + 1}.1", n)
    return shapes | {"fc_dp7.3.weight": (2, 256, 1, 1), "mean_shift.running_mean": (2,)}


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Values of a size at which no layer dies or explodes, none of them at what a fresh network starts with."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif name.endswith("logit_scale"):
            value = torch.tensor(math.log(1 / 0.07))
        elif name.endswith("running_var"):
            value = torch.rand(shape, generator=g) + 0.5
        elif "embedding" in name:
            value = torch.randn(shape, generator=g) * 0.1
        elif len(shape) > 1:
            value = torch.randn(shape, generator=g) * math.sqrt(1.5 / math.prod(shape[1:]))
        elif name.endswith("weight"):
            value = torch.rand(shape, generator=g) + (0.5 if shape != (1,) else 0)
        else:
            value = torch.randn(shape, generator=g) * 0.2
        state[name] = value
    return state


def balance(state: State) -> State:
    """A state whose output has both signs over an image and is not saturated, as that of a trained network.

    Of Step-1 the mean feature of an image of blocks is taken off; the logits of Step-2 get a deviation of 3.
    """
    blocks = torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        levels = clip_levels(of_backbone(state), F.interpolate(blocks, (320, 320)))
        if "vis_project.bias" in state:
            mean = levels[3].mean(dim=(0, 2, 3))
            state["vis_project.bias"] -= state["vis_project.weight"].flatten(1) @ mean
        else:
            state["final_seg1.1.weight"] *= 3 / step2_logits(state, levels, tokenize("dog"), (320, 320)).std()
    return state


def irn_file_state(state: State) -> State:
    """What IRNet's training saves: the same tensors under their second and third names, and index tables."""
    names = dict(state)
    for name, value in state.items():
        if name.startswith("resnet50."):
            part, _, rest = name.removeprefix("resnet50.").partition(".")
            if part in ("conv1", "bn1"):
                stage, rest = 1, f"{0 if part == 'conv1' else 1}.{rest}"
            else:
                stage, rest = int(part[-1]) + 1, f"0.{rest}"
            names[f"stage{stage}.{rest}"] = names[f"backbone.{stage - 1}.{rest}"] = value
        elif name.startswith("fc_edge"):
            names[f"edge_layers.{int(name[7]) - 1}{name[8:]}"] = value
        elif name.startswith("fc_dp"):
            names[f"dp_layers.{int(name[5]) - 1}{name[6:]}"] = value
    names["fc_dp7.4.running_mean"] = names["dp_layers.6.4.running_mean"] = state["mean_shift.running_mean"]
    tables = {f"path_indices{i}": torch.arange(6).reshape(1, 2, 3) for i in range(4)}
    return names | tables | {"disp_target": torch.ones(1, 2, 34, 1)}


# --- evaluation, from the formulas ------------------------------------------------------------------------------


def read_as_released(path: Path) -> tuple[Tensor, tuple[int, int]]:
    """The input (1, 3, 320, 320) by torchvision's transforms, as the released data sets call them; and H, W."""
    image = PIL.Image.open(path).convert("RGB")
    pixels = tvf.to_tensor(tvf.resize(image, [320, 320]))
    pixels = tvf.normalize(pixels, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    return pixels[None], (image.height, image.width)


def tokenize(sentence: str) -> Tensor:
    """int64 (1, 20): start, at most 18 BPE pieces, end, zeros."""
    pieces = open_clip.tokenizer.SimpleTokenizer().encode(sentence)[:18]
    row = [START, *pieces, END]
    return torch.tensor([row + [0] * (20 - len(row))])


def bn(S: State, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, *(S[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


def conv_bn(S: State, conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = S[f"{conv}.weight"]
    return bn(S, norm, F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2))


def clip_levels(S: State, x: Tensor) -> list[Tensor]:
    """c1..c4: a stride is an average pooling before the convolution."""
    for i in (1, 2, 3):
        x = conv_bn(S, f"visual.conv{i}", f"visual.bn{i}", x, stride=2 if i == 1 else 1).relu()
    x = F.avg_pool2d(x, 2)
    levels = []
    for stage in (1, 2, 3, 4):
        i = 0
        while f"visual.layer{stage}.{i}.conv1.weight" in S:
            block = f"visual.layer{stage}.{i}"
            pool = 2 if stage > 1 and i == 0 else 1
            y = conv_bn(S, f"{block}.conv1", f"{block}.bn1", x).relu()
            y = conv_bn(S, f"{block}.conv2", f"{block}.bn2", y).relu()
            y = conv_bn(S, f"{block}.conv3", f"{block}.bn3", F.avg_pool2d(y, pool))
            if i == 0:
                x = conv_bn(S, f"{block}.downsample.0", f"{block}.downsample.1", F.avg_pool2d(x, pool))
            x = (x + y).relu()
            i += 1
        levels.append(x)
    return levels


def layer_norm(S: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], S[f"{name}.weight"], S[f"{name}.bias"])


def linear(S: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, S[f"{name}.weight"].flatten(1), S[f"{name}.bias"])


def clip_text(S: State, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Words (T, width) of one row of tokens, all 20 of them, and the sentence (1, embed)."""
    x = S["token_embedding.weight"][tokens[0]] + S["positional_embedding"][: tokens.shape[1]]
    n, width = x.shape
    heads = width // 64
    future = torch.full((n, n), -math.inf).triu(1)
    i = 0
    while f"transformer.resblocks.{i}.ln_1.weight" in S:
        block = f"transformer.resblocks.{i}"
        y = layer_norm(S, f"{block}.ln_1", x)
        qkv = F.linear(y, S[f"{block}.attn.in_proj_weight"], S[f"{block}.attn.in_proj_bias"])
        q, k, v = (part.view(n, heads, 64).transpose(0, 1) for part in qkv.chunk(3, dim=1))
        looked_up = torch.softmax(q @ k.transpose(1, 2) / 8 + future, dim=-1) @ v
        x = x + linear(S, f"{block}.attn.out_proj", looked_up.transpose(0, 1).reshape(n, width))
        y = linear(S, f"{block}.mlp.c_fc", layer_norm(S, f"{block}.ln_2", x))
        x = x + linear(S, f"{block}.mlp.c_proj", y * torch.sigmoid(1.702 * y))
        i += 1
    words = layer_norm(S, "ln_final", x)
    return words, words[tokens[0].argmax()][None] @ S["text_projection"]


def instance_norm(S: State, name: str, x: Tensor) -> Tensor:
    """Of (positions, channels), over the positions."""
    centred = x - x.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + 1e-5).sqrt() * S[f"{name}.weight"] + S[f"{name}.bias"]


def of_backbone(S: State) -> State:
    return {name.removeprefix("backbone."): value for name, value in S.items() if name.startswith("backbone.")}


def step1_map(S: State, c4: Tensor, tokens: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """The response map (H, W) of one text alone with one image: sections 2.1 to 2.6, and 6."""
    h, w = c4.shape[-2:]
    V = linear(S, "vis_project", c4[0].flatten(1).T)  # (hw, C)
    T = linear(S, "lan_project", clip_text(of_backbone(S), tokens)[1])  # (1, C)
    V, T = V / V.norm(dim=1, keepdim=True), T / T.norm(dim=1, keepdim=True)
    fusion = "attn_fusion."
    Qv, Kv, Vv = (
        instance_norm(S, f"{fusion}v_proj{i}.1", linear(S, f"{fusion}v_proj{i}.0", V)).relu() for i in (1, 2, 3)
    )
    Qt, Kt, Vt = (linear(S, f"{fusion}t_proj{i}.0", T).relu() for i in (1, 2, 3))
    scale = math.sqrt(V.shape[1])
    to_text, to_image = torch.softmax(Qv @ Kt.T / scale, dim=1), torch.softmax(Qt @ Kv.T / scale, dim=1)
    prompt = instance_norm(S, f"{fusion}v_output.1", linear(S, f"{fusion}v_output.0", to_text @ Vt))
    V, T = V + 0.1 * prompt, T + 0.1 * linear(S, f"{fusion}t_output.0", to_image @ Vv)
    score = S["logit_scale"].exp() * (V @ T.T).T.reshape(1, 1, h, w)
    at_input = F.interpolate(score, (320, 320), mode="bilinear", align_corners=False).relu()
    at_image = F.interpolate(at_input, image_hw, mode="bilinear", align_corners=True)[0, 0]
    return at_image / (at_image.max() + 1e-5)


def step2_logits(S: State, levels: list[Tensor], tokens: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """The logits (H, W) of one text and one image: section 5."""
    words = clip_text(of_backbone(S), tokens)[0]  # (T, width)

    def attend(level: int) -> Tensor:
        c, name = levels[level - 1], f"attention{level}"
        V = c[0].flatten(1).T  # (hw, C)
        Q = instance_norm(S, f"{name}.ins_q", linear(S, f"{name}.Wq", V))
        A = torch.softmax(Q @ linear(S, f"{name}.Wk", words).T / math.sqrt(V.shape[1]), dim=1)
        G = instance_norm(S, f"{name}.ins_w", linear(S, f"{name}.Ww", A @ linear(S, f"{name}.Wv", words)))
        out = linear(S, f"{name}.Wo", linear(S, f"{name}.Wm", V).relu() * G).relu()
        return out.T.reshape(c.shape) + c

    def block(name: str, x: Tensor) -> Tensor:
        return F.prelu(conv_bn(S, f"{name}.conv", f"{name}.bn", x), S[f"{name}.relu.weight"])

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)

    d1, d2, d3, d4 = (block(f"reduced_c{i}", levels[0] if i == 1 else attend(i)) for i in (1, 2, 3, 4))
    p4 = up(block("output4", d4), d3)
    p3 = up(block("output3", p4 + d3), d2)
    p2 = up(block("output2", p3 + d2), d1)
    head = F.conv2d(block("final_seg1.0", block("output1", p2 + d1)), S["final_seg1.1.weight"])
    at_input = F.interpolate(head, (320, 320), mode="bilinear", align_corners=False)
    return F.interpolate(at_input, image_hw, mode="bilinear", align_corners=True)[0, 0]


def irn_stages(S: State, x: Tensor) -> list[Tensor]:
    """The five stages, the last without its stride."""
    x = F.conv2d(x, S["resnet50.conv1.weight"], stride=2, padding=3)
    stages = [F.max_pool2d(bn(S, "resnet50.bn1", x).relu(), 3, stride=2, padding=1)]
    for stage in (1, 2, 3, 4):
        x, i = stages[-1], 0
        while f"resnet50.layer{stage}.{i}.conv1.weight" in S:
            block, stride = f"resnet50.layer{stage}.{i}", 2 if i == 0 and stage in (2, 3) else 1
            y = conv_bn(S, f"{block}.conv1", f"{block}.bn1", x).relu()
            y = conv_bn(S, f"{block}.conv2", f"{block}.bn2", y, stride).relu()
            y = conv_bn(S, f"{block}.conv3", f"{block}.bn3", y)
            if i == 0:
                x = conv_bn(S, f"{block}.downsample.0", f"{block}.downsample.1", x, stride)
            x = (x + y).relu()
            i += 1
        stages.append(x)
    return stages


def irn_outputs(S: State, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Boundary (h, w) of an image (3, H, W), averaged with its mirror's, and displacement (2, h, w)."""

    def branch(name: str, x: Tensor, groups: int, scale: int, hw: tuple[int, ...]) -> Tensor:
        x = F.conv2d(x, S[f"{name}.0.weight"])
        x = F.group_norm(x, groups, S[f"{name}.1.weight"], S[f"{name}.1.bias"])
        if scale > 1:
            x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        return x.relu()[..., : hw[0], : hw[1]]

    def edge(stages: list[Tensor]) -> Tensor:
        hw = stages[1].shape[-2:]
        scales = (1, 1, 2, 4, 4)
        parts = [branch(f"fc_edge{i + 1}", stages[i], 4, scales[i], hw) for i in range(5)]
        return F.conv2d(torch.cat(parts, dim=1), S["fc_edge6.weight"], S["fc_edge6.bias"])[0, 0]

    stages = irn_stages(S, pixels[None])
    mirrored = edge(irn_stages(S, pixels[None].flip(-1))).flip(-1)
    hw4, hw8 = stages[1].shape[-2:], stages[2].shape[-2:]
    deep = [branch(f"fc_dp{i}", stages[i - 1], 16, scale, hw8) for i, scale in ((3, 1), (4, 2), (5, 2))]
    parts = [
        branch("fc_dp1", stages[0], 8, 1, hw4),
        branch("fc_dp2", stages[1], 16, 1, hw4),
        branch("fc_dp6", torch.cat(deep, dim=1), 16, 2, hw4),
    ]
    field = F.conv2d(branch("fc_dp7", torch.cat(parts, dim=1), 16, 1, hw4), S["fc_dp7.3.weight"])[0]
    return torch.sigmoid((edge(stages) + mirrored) / 2), field - S["mean_shift.running_mean"][:, None, None]


class Independent:
    """The evaluation of a checkpoint's state dict, as the released code evaluates it."""

    irn_outputs = staticmethod(torch.no_grad()(irn_outputs))
    read = staticmethod(read_as_released)

    @staticmethod
    @torch.no_grad()
    def step1_maps(S: State, path: Path, sentences: list[str]) -> np.ndarray:
        """float32 (N, H, W)."""
        pixels, hw = read_as_released(path)
        c4 = clip_levels(of_backbone(S), pixels)[3]
        return torch.stack([step1_map(S, c4, tokenize(sentence), hw) for sentence in sentences]).numpy()

    @staticmethod
    @torch.no_grad()
    def step2_logits(S: State, path: Path, sentences: list[str]) -> np.ndarray:
        """float32 (N, H, W)."""
        pixels, hw = read_as_released(path)
        levels = clip_levels(of_backbone(S), pixels)
        return torch.stack([step2_logits(S, levels, tokenize(sentence), hw) for sentence in sentences]).numpy()


@pytest.fixture(scope="session")
def independent() -> type[Independent]:
    """Evaluation without the project."""
    return Independent


@pytest.fixture(scope="session")
def released_state() -> Callable[..., State]:
    """A function (kind, full=False, seed=0) that gives a state dict with random values under the released names."""

    def make(kind: str, full: bool = False, seed: int = 0) -> State:
        sizes = RN50 if full else TINY
        shapes = {
            "tris-step1": lambda: step1_shapes(sizes),
            "tris-step2": lambda: step2_shapes(sizes),
            "irn": irn_shapes,
            "clip": lambda: clip_shapes(sizes),
        }[kind]()
        state = random_state(shapes, seed)
        return balance(state) if kind.startswith("tris") else state

    return make


@pytest.fixture(scope="session")
def official_shapes() -> Callable[..., dict[str, tuple[int, ...]]]:
    """A function (**sizes) that gives names and shapes of a Step-1; RN50's where no size is given."""
    return lambda **sizes: step1_shapes(Sizes(**sizes))


@pytest.fixture(scope="session")
def write_released() -> Callable[[str, State, Path], Path]:
    """A function (kind, state, path) that saves a state dict as the released code does."""

    def write(kind: str, state: State, path: Path) -> Path:
        if kind == "irn":
            torch.save(irn_file_state(state), path)
        elif kind == "clip":
            sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
            torch.save(state | {name: torch.tensor(value) for name, value in sizes.items()}, path)
        else:
            optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 5e-5}]}
            lr_scheduler = {"last_epoch": 3, "lr_lambdas": [None]}
            torch.save({"model": state, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "epoch": 14}, path)
        return path

    return write


@pytest.fixture(scope="module", autouse=True)
def _tiny_is_known() -> Iterator[None]:
    """The small CLIP of these tests among open_clip's models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", TINY_CONFIG)
        yield


@pytest.fixture(scope="session")
def tiny_files(
    tmp_path_factory: pytest.TempPathFactory,
    released_state: Callable[..., State],
    write_released: Callable[[str, State, Path], Path],
) -> dict[str, Path]:
    """A small Step-1 and Step-2 and a whole IRNet, as files."""
    folder = tmp_path_factory.mktemp("released")
    return {
        kind: write_released(kind, released_state(kind), folder / f"{kind}.pth")
        for kind in ("tris-step1", "tris-step2", "irn")
    }
