"""A trained Step-1 or Step-2 as one file, from image and token ids to the map: ONNX, or torch.export's format."""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.datasets.io.images import IMAGENET_MEAN, IMAGENET_STD
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import compute_map, show_map
from ris_pipeline.methods.tris import Step1Responder, Step2Responder
from ris_pipeline.networks.step1 import Step1

Format = Literal["onnx", "torch"]
TOLERANCE = 1e-3  # of a map in [0, 1]; other kernels add up in another order, which is about 1e-5
N_CHECKS = 3  # random images


class Exported(nn.Module):
    """From an image and a sentence's tokens to the map as it is shown: network and rule in one graph."""

    mean: Tensor
    std: Tensor

    def __init__(self, responder: Step1Responder | Step2Responder) -> None:
        super().__init__()
        self.network = responder.network
        self.rule, self.input_size = responder.rule, responder.input_size
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Return the map float32 (S, S) in [0, 1] of `image` uint8 (S, S, 3) RGB and `tokens` int64 (1, T)."""
        pixels = ((image.permute(2, 0, 1).float() - self.mean) / self.std)[None]
        words, sentence = self.network.clip.words(tokens)
        if isinstance(self.network, Step1):
            # Not encode_text: how many tokens it reads depends on the sentence, and a graph has one length.
            T = F.normalize(self.network.lan_project(sentence), dim=-1)
            grids = self.network.respond_each(self.network.encode_image(pixels), T)
        else:
            grids = self.network.segment(self.network.encode_image(pixels), words)
        maps = compute_map(grids, self.rule, self.input_size, (self.input_size, self.input_size))
        return show_map(maps, self.rule)[0]


def export(responder: Any, out: Path, form: Format) -> float:
    """Write a responder's network and rule to the file `out`; return the largest difference of a map from torch's.

    The file is read again and compared on random images before it is put in place. Its metadata name the sizes, the
    tokenizer and the threshold above which the map is a mask. Raises RisError for a method other than TRIS, where the
    libraries of the extra `export` are missing, and where the maps differ by over 0.001.
    """
    if not isinstance(responder, Step1Responder | Step2Responder) or getattr(responder, "centred", False):
        raise RisError("only a trained Step-1 or Step-2 of TRIS is exported; give one by --checkpoint")
    if responder.network.clip.tokenizer is not None:
        raise RisError("a CLIP with a tokenizer of its own is not exported yet; take one with CLIP's BPE")
    if not out.parent.is_dir():
        raise RisError(f"{out.parent}: no such folder; make it first")
    modules = [import_export(name) for name in ("onnx", "onnxruntime", "onnxscript")] if form == "onnx" else []
    graph = Exported(responder).cpu().eval().requires_grad_(False)
    size, n_tokens = responder.input_size, responder.network.clip.n_tokens
    inputs = _draw(0, size, n_tokens)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        written = Path(folder) / ("model" + (".onnx" if form == "onnx" else ".pt2"))
        facts = describe(responder)
        if form == "onnx":
            names: dict[str, Any] = {"input_names": ["image", "tokens"], "output_names": ["map"]}
            torch.onnx.export(graph, inputs, str(written), dynamo=True, external_data=False, verbose=False, **names)
            _add_facts(modules[0], written, facts)
            session = modules[1].InferenceSession(str(written), providers=["CPUExecutionProvider"])

            def run(image: Tensor, tokens: Tensor) -> Tensor:
                return torch.from_numpy(session.run(["map"], {"image": image.numpy(), "tokens": tokens.numpy()})[0])
        else:
            program = torch.export.export(graph, inputs)
            with warnings.catch_warnings():  # torch's remark on weights that share memory, which are on the CPU here
                warnings.filterwarnings("ignore", "No complete tensor", UserWarning)
                torch.export.save(program, written, extra_files={"ris.json": json.dumps(facts)})
                run = torch.export.load(written).module()
        checks = [_draw(seed, size, n_tokens) for seed in range(N_CHECKS)]
        differences = [float((run(*check) - graph(*check)).abs().max()) for check in checks]
        if not max(differences) <= TOLERANCE:
            raise RisError(f"{out}: not written: its maps differ from torch's by {max(differences):.2g}")
        written.replace(out)
    return max(differences)


def describe(responder: Step1Responder | Step2Responder) -> dict[str, str]:
    """Return what a reader of the file has to know of it, as text."""
    threshold = float(show_map(torch.tensor(responder.rule.threshold), responder.rule))
    return {
        "input_size": str(responder.input_size),
        "n_tokens": str(responder.network.clip.n_tokens),
        "tokenizer": "CLIP's BPE (open_clip.tokenize)",
        "resize": "bilinear with antialiasing, to a square",
        "threshold": str(threshold),
    }


def import_export(name: str) -> Any:
    """Return a module of the extra `export`; RisError, naming what to install, where it is not there."""
    try:
        return import_module(name)
    except ImportError as error:
        raise RisError("ONNX needs an extra: pip install -c constraints.txt -e '.[export]'") from error


def _add_facts(onnx: Any, file: Path, facts: dict[str, str]) -> None:
    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, str(file))


def _draw(seed: int, size: int, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Return a random image uint8 (S, S, 3) of smooth blots and a sentence of three tokens int64 (1, T)."""
    random = np.random.default_rng(seed)
    blots = torch.from_numpy(random.integers(0, 256, (1, 3, 8, 8))).float()
    image = F.interpolate(blots, size=(size, size), mode="bilinear")[0].permute(1, 2, 0).to(torch.uint8)
    tokens = torch.zeros(1, n_tokens, dtype=torch.int64)
    tokens[0, :5] = torch.tensor([49406, *random.integers(300, 40000, 3), 49407])
    return image.contiguous(), tokens
