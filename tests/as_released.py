"""How the released code works, beside how we do: milliseconds of both on one device, at the paper's sizes.

By hand, with random values in the networks:

    PYTHONPATH=. python tests/as_released.py --device cuda --batch 48 --json result.json
    PYTHONPATH=. OMP_WAIT_POLICY=passive python tests/as_released.py --device cpu --batch 4

On a CPU the milliseconds are the processor's, all threads together.

The released way, from its code: a PRMS dump takes one ref at a time, encodes the image anew for each sentence, and has
CLIP see each of K maps K times; a score encodes the image for each sentence; the random walk squares a dense matrix for
each ref; CLIP's attention pooling runs, and nothing reads it. A step of Step-1 shows its masked images to CLIP twice,
encodes the negative sentences image by image, and takes gradients of CLIP's weights, which nothing uses; one of Step-2
takes W_w at each position. On CUDA that CLIP is in float16; cuDNN chooses deterministically in Step-1, by search in
Step-2. The comparison favours it where there is a choice: the next images are read meanwhile, the sentences of a
training are tokens already, torch is the same, and what is computed beside (boxes of the masks, a log) is left out.
`test_as_released.py` shows that both ways give the same.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from paper_macs import attend_as_released
from ris_pipeline.arrays import FOREGROUND
from ris_pipeline.bench import Shape, make_dataset, measure_peak
from ris_pipeline.chain.scores import BATCH_SIZE
from ris_pipeline.config import ResponsesConfig, Step1Config, Step2Config
from ris_pipeline.datasets.io.images import load_image, size_of, to_pixels
from ris_pipeline.datasets.records import Dataset, Expression, Ref
from ris_pipeline.maps.respond import fill_responses, open_store
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods import tris
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import aux_from_config, step1_from_config, step2_from_config
from ris_pipeline.networks.parts.bilateral_prompt import PROMPT_WEIGHT, BilateralPrompt
from ris_pipeline.networks.parts.pooling import resize_positions
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2
from ris_pipeline.process.ahead import run_ahead
from ris_pipeline.process.device import autocast
from ris_pipeline.refine import affinity, walk
from ris_pipeline.scoring.evaluate import evaluate_network
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.compiled import compile_parts
from ris_pipeline.training.draws import Draw
from ris_pipeline.training.losses import COSINE_MAX, COSINE_MIN, classification_loss
from ris_pipeline.training.tasks import ReferringTask, Step1Task, Step2Task

NAMES = ("step1", "step2", "dump", "score", "walk")
COCO_HW = (480, 640)
BETA, N_SQUARINGS, RADIUS = 10.0, 8, 5  # of the walk; IRNet
Run = Callable[[], object]


# --- the networks, as released


def levels_as_released(clip: Clip, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return c1..c4 of `pixels` float (B, 3, H, W), after the attention pooling over every position of c4."""
    levels = clip.levels(pixels)
    pooling, c4 = clip.model.visual.attnpool, levels[3]
    cells = c4.flatten(2).transpose(1, 2)
    cells = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)
    cells = cells + resize_positions(pooling.positional_embedding, (c4.shape[2], c4.shape[3]))
    heads = [
        layer(cells).unflatten(2, (pooling.num_heads, -1)).transpose(1, 2)
        for layer in (pooling.q_proj, pooling.k_proj, pooling.v_proj)
    ]
    pooling.c_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))  # nothing reads it
    return levels


def prompt_as_released(fusion: BilateralPrompt, V: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `fusion(V, T)` returns of `V` (B, C, h, w) and `T` (N, C): texts are projected for each image."""
    texts = T.expand(len(V), *T.shape).contiguous()  # (B, N, C)
    queries, keys, values = (project(V).flatten(2) for project in (fusion.v_proj1, fusion.v_proj2, fusion.v_proj3))
    text_queries, text_keys, text_values = (
        project(texts) for project in (fusion.t_proj1, fusion.t_proj2, fusion.t_proj3)
    )
    scale = 1 / math.sqrt(V.shape[1])
    seen = torch.softmax(queries.transpose(1, 2) @ text_keys.transpose(1, 2) * scale, dim=2) @ text_values
    read = torch.softmax(text_queries @ keys * scale, dim=2) @ values.transpose(1, 2)
    update = fusion.v_output(seen.transpose(1, 2).reshape(V.shape))
    return V + PROMPT_WEIGHT * update, texts + PROMPT_WEIGHT * fusion.t_output(read)


def respond_as_released(network: Step1, pixels: Tensor, tokens: Tensor) -> Tensor:
    """Return S float (B, N, h, w) of `pixels` (B, 3, H, W) and `tokens` (N, T): padding is encoded too."""
    T = F.normalize(network.lan_project(network.clip.words(tokens)[1]), dim=-1)
    V = F.normalize(network.vis_project(levels_as_released(network.clip, pixels)[3]), dim=1)
    return network.compare(*prompt_as_released(network.attn_fusion, V, T))


def segment_as_released(network: Step2, pixels: Tensor, tokens: Tensor) -> list[Tensor]:
    """Return the logits float (B, 1, H, W) of the heads, finest first; in evaluation mode of the finest alone."""
    words = network.clip.words(tokens)[0]
    c1, *deeper = levels_as_released(network.clip, pixels)
    attentions = (network.attention2, network.attention3, network.attention4)
    fused = [attend_as_released(attend, c, words) + c for attend, c in zip(attentions, deeper, strict=True)]
    d1, d2, d3, d4 = (
        reduce(c)
        for reduce, c in zip(
            (network.reduced_c1, network.reduced_c2, network.reduced_c3, network.reduced_c4), [c1, *fused], strict=True
        )
    )
    p4 = _resize(network.output4(d4), d3)
    p3 = _resize(network.output3(p4 + d3), d2)
    p2 = _resize(network.output2(p3 + d2), d1)
    p1 = network.output1(p2 + d1)
    heads = [(network.final_seg1, p1)]
    if network.training:
        heads += [(network.final_seg2, p2), (network.final_seg3, p3), (network.final_seg4, p4)]
    return [_resize(head(p), pixels) for head, p in heads]


def _resize(values: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(values, like.shape[-2:], mode="bilinear", align_corners=False)


def halve(aux: Clip, device: torch.device) -> Clip:
    """Return the frozen CLIP as the released code has it: float16 on CUDA, its weights open to gradients."""
    aux = aux.to(memory_format=torch.contiguous_format)
    return (aux.half() if device.type == "cuda" else aux).requires_grad_(True)


def encode_as_released(aux: Clip, pixels: Tensor) -> Tensor:
    """Return CLIP's features float (B, D) of length 1, in the precision of its weights."""
    return F.normalize(aux.encode_image(pixels.to(aux.model.visual.conv1.weight.dtype)), dim=-1)


def read_as_released(aux: Clip, tokens: Tensor) -> Tensor:
    """Return CLIP's features float (N, D) of length 1, padding encoded too."""
    return F.normalize(aux.words(tokens)[1], dim=-1)


# --- a training step, as released


class StepOne:
    """Step-1's training step, as released, on one batch; its sentences are tokens already, in int64 (B, 1 + k, T)."""

    def __init__(self, task: Step1Task, batch: Batch) -> None:
        self.network, self.aux, self.config, self.batch = task.network, halve(task.aux, task.device), task.config, batch
        tokenize = task.network.clip.tokenize
        self.tokens = torch.stack([tokenize([draw.sentence, *draw.negatives]) for draw in batch.draws])

    def __call__(self) -> Tensor:
        """Return the loss of the batch."""
        device = self.network.logit_scale.device
        pixels = self.batch.pixels.to(device, non_blocking=True)
        tokens = self.tokens.to(device, non_blocking=True)
        S = respond_as_released(self.network, pixels, tokens[:, 0])
        own = torch.stack([S[i, i : i + 1] for i in range(len(S))])  # (B, 1, h, w)
        cls = classification_loss(S, torch.eye(len(S), device=device))
        side = (self.aux.image_size,) * 2
        maps = F.interpolate(torch.sigmoid(_resize(own, pixels)), side, mode="bilinear", align_corners=True)
        images = F.interpolate(pixels, side, mode="bilinear", align_corners=True)
        seen = torch.stack([maps[i] * images[i] for i in range(len(maps))])
        torch.stack([(1 - maps[i]) * images[i] for i in range(len(maps))])  # nothing reads it
        cosines = (encode_as_released(self.aux, seen) * read_as_released(self.aux, tokens[:, 0])).sum(dim=1)
        pos = -torch.log(cosines.clamp(COSINE_MIN, COSINE_MAX)).mean()
        neg = torch.zeros((), device=device)
        for feature, others in zip(encode_as_released(self.aux, seen), tokens[:, 1:], strict=True):
            neg = neg - torch.log(1 - read_as_released(self.aux, others) @ feature).mean()
        c = self.config
        return c.weight_pos * pos + c.weight_neg * neg / len(S) + c.weight_cls * cls


class StepTwo:
    """Step-2's training step, as released, on one batch."""

    def __init__(self, task: Step2Task, batch: Batch) -> None:
        self.network, self.batch = task.network, batch
        self.tokens = task.network.clip.tokenize([draw.sentence for draw in batch.draws])

    def __call__(self) -> Tensor:
        """Return the loss of the batch."""
        device = next(self.network.parameters()).device
        pixels = self.batch.pixels.to(device, non_blocking=True)
        assert self.batch.targets is not None
        target = (self.batch.targets.to(device, non_blocking=True) == FOREGROUND)[:, None].float()
        heads = segment_as_released(self.network, pixels, self.tokens.to(device, non_blocking=True))
        return torch.stack([F.binary_cross_entropy_with_logits(head, target) for head in heads]).sum()


def learn(compute_loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Take one training step, and wait for its loss, as both ways do to log it."""
    loss = compute_loss()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    loss.item()


# --- dump, score and walk, as released


@dataclass(frozen=True)
class Seen:
    """A ref as its loader gives it."""

    ref: Ref
    pixels: Tensor  # float32 (1, 3, S, S)
    hw: tuple[int, int]
    mask: Tensor | None  # bool (H, W)


def load_refs(dataset: Dataset, size: int, *, masks: bool) -> Iterator[Seen]:
    """Yield the refs one by one, each with its image read for itself, ahead of its turn."""

    def load(ref: Ref) -> Seen:
        image = dataset.images[ref.image_id]
        mask = torch.from_numpy(dataset.load_mask(ref)) if masks else None
        return Seen(ref, to_pixels(load_image(image), size)[None], size_of(image), mask)

    with closing(run_ahead(load, dataset.refs, 4)) as refs:
        yield from refs


@torch.no_grad()
def dump_as_released(network: Step1, aux: Clip, size: int, dataset: Dataset, folder: Path) -> dict[int, list[float]]:
    """Write the map of each ref that PRMS selects, and return the scores of its sentences, by ref_id."""
    device = network.logit_scale.device
    side = (aux.image_size,) * 2
    found: dict[int, list[float]] = {}
    for seen in load_refs(dataset, size, masks=False):
        pixels = seen.pixels.to(device)
        small = F.interpolate(pixels, side, mode="bilinear", align_corners=True)
        tokens = [network.clip.tokenize([e.sentence]).to(device) for e in seen.ref.expressions]
        best, scores = pixels, [-math.inf]
        for own in tokens:
            M = F.relu(_resize(respond_as_released(network, pixels, own), pixels))
            shown = F.interpolate(M, seen.hw, mode="bilinear", align_corners=True)
            masked = F.interpolate(M, side, mode="bilinear", align_corners=True) * small
            score = 0.0
            for other in tokens:
                score += (encode_as_released(aux, masked) @ read_as_released(aux, other).T).item()
            if score > max(scores):
                best = shown
            scores.append(score)
        np.save(folder / f"{seen.ref.ref_id}.npy", (best[0, 0] / (best.max() + 1e-5)).cpu().numpy())
        found[seen.ref.ref_id] = scores[1:]
    return found


@torch.no_grad()
def score_as_released(network: Step2, size: int, dataset: Dataset) -> Iterator[tuple[int, int, bool, bool]]:
    """Yield intersection, union, PointIt and PointM of each sentence.

    The mask is where the logit is positive: the released code divides by the maximum first, which turns a map without a
    positive value round.
    """
    device = next(network.parameters()).device
    for seen in load_refs(dataset, size, masks=True):
        pixels = seen.pixels.to(device)
        assert seen.mask is not None
        truth = seen.mask.to(device)
        for expression in seen.ref.expressions:
            tokens = network.clip.tokenize([expression.sentence]).to(device)
            logits = segment_as_released(network, pixels, tokens)[0]
            shown = F.interpolate(logits, seen.hw, mode="bilinear", align_corners=True)[0, 0]
            mask = shown > 0
            intersection, union = (truth & mask).sum(), (truth | mask).sum()
            heat = (shown / (shown.max().abs() + 1e-5)).cpu().numpy()
            y, x = np.unravel_index(np.argmax(heat), heat.shape)
            in_box = any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in seen.ref.boxes_xyxy)
            yield int(intersection), int(union), in_box, bool(truth[int(y), int(x)])


def walk_as_released(maps: Tensor, boundary: Tensor) -> Tensor:
    """Return the walk of maps float32 (R, h, w) of one image with boundary (h, w): a dense T (hw, hw) for each map."""
    return torch.stack([_walk_densely(walked, boundary) for walked in maps])


def _walk_densely(walked: Tensor, boundary: Tensor) -> Tensor:
    height, width = boundary.shape
    index = affinity.PathIndex(RADIUS)
    pixels = torch.arange(height * width).view(height, width)
    sources, targets, values = [pixels.flatten()], [pixels.flatten()], [torch.ones(height * width)]
    for (dy, dx), path in zip(index.offsets.tolist(), index.paths, strict=True):
        rows, columns = height - dy, range(max(0, -dx), width - max(0, dx))
        if rows <= 0 or not columns:
            continue
        on_path = [boundary[y : y + rows, columns.start + x : columns.stop + x] for y, x in path.tolist()]
        a = (1 - torch.stack(on_path).amax(dim=0)).flatten().cpu()
        here = pixels[:rows, columns.start : columns.stop].flatten()
        there = here + dy * width + dx
        sources += [here, there]
        targets += [there, here]
        values += [a, a]
    where = torch.stack([torch.cat(sources), torch.cat(targets)])
    size = (height * width,) * 2
    A = torch.sparse_coo_tensor(where, torch.cat(values), size, check_invariants=False).to_dense().to(boundary.device)
    T = A**BETA
    T = T / T.sum(dim=0, keepdim=True)
    for _ in range(N_SQUARINGS):
        T = T @ T
    return ((walked * (1 - boundary)).flatten() @ T).view(height, width)


# --- ours


def learn_ours(task: ReferringTask, batch: Batch, precision: str) -> Callable[[], Tensor]:
    """Return a function that returns the loss of the batch in that precision."""

    def compute_loss() -> Tensor:
        with autocast(task.device, precision):
            loss: Tensor = task(batch)["loss"]
        return loss

    return compute_loss


def dump_ours(network: Step1, aux: Clip, config: Step1Config, dataset: Dataset, path: Path) -> ResponseStore:
    """Return the store of a whole dump."""
    responder = tris.wrap(network, config)
    store = open_store(path, dataset, responder, {})
    fill_responses(responder, aux, dataset, store, range(store.n_blocks), ResponsesConfig(), lambda _: None)
    return store


def dump_anew(network: Step1, aux: Clip, config: Step1Config, dataset: Dataset, path: Path) -> None:
    """Dump once more, in place of what is there."""
    rmtree(path, ignore_errors=True)
    dump_ours(network, aux, config, dataset, path)


def walk_ours(maps: Tensor, boundary: Tensor) -> Tensor | NDArray[np.floating]:
    """Return the walk by the device's way."""
    n_steps = 2**N_SQUARINGS
    if maps.device.type == "cuda":
        return walk.propagate(maps, boundary, beta=BETA, n_steps=n_steps, radius=RADIUS)
    return affinity.propagate(maps.numpy(), boundary.numpy(), beta=BETA, n_steps=n_steps, radius=RADIUS)


# --- the measurement


def make_batch(n: int, side: int, device: torch.device) -> Batch:
    """Return n refs, each of its own image, in memory that a device can be filled from."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.standard_normal((n, 3, side, side), np.float32))
    targets = torch.from_numpy(rng.integers(0, 2, (n, side, side), np.uint8))
    draws = [
        Draw(i, Expression(i, f"the thing number {i}"), tuple(f"another thing {i} of {k}" for k in range(3)))
        for i in range(n)
    ]
    batch = Batch(pixels, torch.arange(n), draws, targets, tuple(range(n)))
    return batch.pin_memory() if device.type == "cuda" else batch


class Table:
    """The rows, printed as they come and kept in a file."""

    def __init__(self, device: torch.device, batch: int, repeats: int, file: Path | None) -> None:
        self.device, self.repeats, self.file = device, repeats, file
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.value: dict[str, Any] = {
            "device": name, "torch": torch.__version__, "threads": torch.get_num_threads(), "batch": batch,
            "repeats": repeats, "rows": [],
        }  # fmt: skip
        print(f"{name}, torch {torch.__version__}, batch {batch}; milliseconds, median of {repeats}", flush=True)
        print(f"{'':44}{'released':>10}{'ours':>10}{'times':>8}", flush=True)

    def measure_peaks(self, precisions: Sequence[str]) -> None:
        """Print and keep the operations a second of a large matrix product."""
        peaks = {precision: measure_peak(self.device, precision) / 1e12 for precision in precisions}
        self.value["peak_tflops"] = peaks
        print(f"TFLOP/s of a large matrix product: {peaks}", flush=True)

    def time(self, run: Run, *, warm: int = 1) -> tuple[float, float]:
        """Return the median of the calls and the first one, in milliseconds; calls that warm up come before."""
        found = []
        for _ in range(warm + self.repeats):
            start = self._read_clock()
            run()
            found.append(1e3 * (self._read_clock() - start))
        return median(found[warm:]), found[0]

    def add(self, name: str, released: float, ours: float, first: float | None = None) -> None:
        """Print and keep a row; `first`: milliseconds of the first call, where a compiler worked in it."""
        row = {"name": name, "released_ms": released, "ours_ms": ours, "ratio": released / ours}
        if first is not None:
            row["first_ms"] = first
        self.value["rows"].append(row)
        note = "" if first is None else f"   first step {first / 1e3:.1f} s"
        print(f"{name:44}{released:10.2f}{ours:10.2f}{released / ours:8.2f}{note}", flush=True)
        if self.file is not None:
            self.file.write_text(json.dumps(self.value, indent=1))

    def _read_clock(self) -> float:
        """Return seconds: on CUDA when the device is done, else of the processor, which other work does not lengthen.

        Threads that spin while they wait count too: set OMP_WAIT_POLICY=passive.
        """
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def choose_as_released(device: torch.device, stage: str) -> Any:
    """Return a context in which cuDNN chooses as the released training of the stage tells it to."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(benchmark=stage == "step2", deterministic=stage == "step1", allow_tf32=True)


def measure_training(table: Table, name: str, task: ReferringTask, batch: Batch, precisions: Sequence[str]) -> None:
    """Add a training's rows: the released step in float32, ours in each precision, "+compile" for compiled parts."""
    device = table.device
    task.to(device).train()
    task.to(memory_format=torch.contiguous_format)
    loss: Callable[[], Tensor]
    if isinstance(task, Step1Task):
        loss = StepOne(task, batch)
    else:
        assert isinstance(task, Step2Task)
        loss = StepTwo(task, batch)
    config = task._rates
    optimizer = torch.optim.AdamW(task.network.parameter_groups(*config))
    with choose_as_released(device, name):
        released, _ = table.time(partial(learn, loss, optimizer))
    del optimizer
    task.to(memory_format=torch.channels_last)
    if isinstance(task, Step1Task):
        task.aux.float().requires_grad_(False)
        task.aux.zero_grad(set_to_none=True)
    ours = task.optimizer()
    for precision in precisions:
        kind, _, compiled = precision.partition("+")
        if compiled:
            compile_parts(task)
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        found, first = table.time(partial(learn, learn_ours(task, batch, kind), ours), warm=2)
        table.add(f"{name}, training step, {precision}", released, found, first if compiled else None)
    torch.backends.cuda.matmul.allow_tf32 = False


def measure_dump(table: Table, config: Step1Config, n_images: int, folder: Path) -> None:
    """Add the rows of a PRMS dump, per sentence, with one and with three refs of three sentences an image."""
    device = table.device
    network = step1_from_config(config).to(device).eval().requires_grad_(False)
    aux = aux_from_config(config).to(device)
    for n_refs in (1, 3):
        place = folder / f"dump-{n_refs}"
        place.mkdir()
        shape = Shape(n_images, n_refs * n_images, 3 * n_refs * n_images, 0, COCO_HW)
        dataset = make_dataset(place, shape, n_images)
        few = make_dataset(place, shape, max(1, min(n_images, 4 // n_refs)))
        network.to(memory_format=torch.contiguous_format)
        aux = halve(aux, device)
        released, _ = table.time(partial(dump_as_released, network, aux, config.input_size, few, place))
        network.to(memory_format=torch.channels_last)
        aux = aux.float().to(memory_format=torch.channels_last)
        ours, _ = table.time(partial(dump_anew, network, aux, config, dataset, place / "responses.zarr"))
        name = f"dump with PRMS, a sentence, {n_refs} refs an image"
        table.add(name, released / few.n_expressions, ours / dataset.n_expressions)


def measure_score(table: Table, config: Step2Config, n_images: int, folder: Path, precisions: Sequence[str]) -> None:
    """Add the rows of a score of Step-2, per sentence, at seven sentences an image."""
    device = table.device
    network = step2_from_config(config).to(device).eval().requires_grad_(False)
    place = folder / "score"
    place.mkdir()
    shape = Shape(n_images, 2 * n_images, 7 * n_images, 0, COCO_HW)
    dataset = make_dataset(place, shape, n_images)
    few = make_dataset(place, shape, min(n_images, 4))
    released, _ = table.time(lambda: list(score_as_released(network, config.input_size, few)))
    network.to(memory_format=torch.channels_last)
    responder = tris.Step2Responder(network, config.input_size)

    def score(precision: str) -> None:
        with autocast(device, precision):
            for _ in evaluate_network(dataset, responder, BATCH_SIZE):
                pass

    for precision in precisions:
        ours, _ = table.time(partial(score, precision))
        name = f"score of step2, a sentence, 7 an image, {precision}"
        table.add(name, released / few.n_expressions, ours / dataset.n_expressions)


def measure_walk(table: Table, sizes: Sequence[tuple[int, int]]) -> None:
    """Add the rows of the random walk, of one map and of three maps of an image."""
    rng = np.random.default_rng(0)
    for height, width in sizes:
        boundary = torch.from_numpy(rng.random((height, width), np.float32) ** 4).to(table.device)
        for n in (1, 3):
            maps = torch.from_numpy(rng.random((n, height, width), np.float32)).to(table.device)
            released, _ = table.time(partial(walk_as_released, maps, boundary))
            ours, _ = table.time(partial(walk_ours, maps, boundary))
            table.add(f"random walk {height}×{width}, {n} maps", released, ours)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="refs in a training step; 48 on CUDA, else 4")
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed, after one that warms up")
    parser.add_argument("--images", type=int, help="images that are dumped and scored; 48 on CUDA, else 2")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--precision", nargs="+", help="fp32, tf32, bf16, bf16+compile; the last compiled ones stay so")
    parser.add_argument("--json", type=Path, help="file to write to")
    given = parser.parse_args()
    device = torch.device(given.device)
    on_cuda = device.type == "cuda"
    batch_size, n_images = given.batch or (48 if on_cuda else 4), given.images or (48 if on_cuda else 2)
    precisions = given.precision or (["fp32", "tf32", "bf16"] if on_cuda else ["fp32", "bf16"])
    step1 = Step1Config(clip_weights=None, aux_weights=None)
    step2 = Step2Config(clip_weights=None)
    torch.manual_seed(0)
    table = Table(device, batch_size, given.repeats, given.json)
    batch = make_batch(batch_size, step1.input_size, device)
    table.measure_peaks(sorted({precision.partition("+")[0] for precision in precisions} & {"fp32", "bf16"}))
    with TemporaryDirectory(prefix="as-released-") as folder:
        for name in given.only:
            if name == "step1":
                task = Step1Task(step1_from_config(step1), aux_from_config(step1), step1)
                measure_training(table, name, task, batch, precisions)
            elif name == "step2":
                measure_training(table, name, Step2Task(step2_from_config(step2), step2), batch, precisions)
            elif name == "dump":
                measure_dump(table, step1, n_images, Path(folder))
            elif name == "score":
                plain = [precision for precision in precisions if precision in ("fp32", "bf16")]
                measure_score(table, step2, n_images, Path(folder), plain)
            else:
                measure_walk(table, [(60, 80), (120, 160)] if on_cuda else [(36, 48)])


if __name__ == "__main__":
    main()
