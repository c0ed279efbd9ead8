"""What the trained networks say of a data set: each image encoded once for all its sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ris_pipeline.config import ResponsesConfig
from ris_pipeline.datasets.io.images import load_image, size_of, to_pixels
from ris_pipeline.datasets.records import Dataset, ImageGroup, group_by_image
from ris_pipeline.maps.select import score_maps
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.networks.step2 import Step2


def chunks(groups: Sequence[ImageGroup], size: int) -> Iterator[Sequence[ImageGroup]]:
    """The groups in runs of up to size images."""
    for start in range(0, len(groups), size):
        yield groups[start : start + size]


def load_pixels(dataset: Dataset, group: Sequence[ImageGroup], size: int, device: torch.device) -> Tensor:
    """The images of the groups as network input, float32 (B, 3, size, size)."""
    pixels = [to_pixels(load_image(dataset.images[one.image_id]), size) for one in group]
    return torch.stack(pixels).to(device, memory_format=torch.channels_last)


@torch.inference_mode()
def respond(network: Step1, pixels: Tensor, group: Sequence[ImageGroup]) -> list[Tensor]:
    """The score grids of each image's sentences, float32 (n_i, h, w), each text alone with its image (official)."""
    V = network.encode_image(pixels)
    distinct = {text: i for i, text in enumerate(dict.fromkeys(t for one in group for t in one.sentences))}
    T = network.encode_text(network.clip.tokenize(list(distinct)).to(pixels.device))
    return [
        network.respond_each(V[i : i + 1], T[[distinct[text] for text in one.sentences]]).float()
        for i, one in enumerate(group)
    ]


@torch.inference_mode()
def score_selection(
    grids: Sequence[Tensor], pixels: Tensor, group: Sequence[ImageGroup], aux: Clip, config: ResponsesConfig
) -> Tensor:
    """The PRMS score of every row of the groups, float32 (n,): one pass of the frozen CLIP for all maps."""
    counts = torch.tensor([len(grid) for grid in grids], device=pixels.device)
    own = torch.repeat_interleave(torch.arange(len(grids), device=pixels.device), counts)
    distinct = {text: i for i, text in enumerate(dict.fromkeys(t for one in group for t in one.sentences))}
    features = aux.encode_text(aux.tokenize(list(distinct)).to(pixels.device))
    texts = features[[distinct[text] for one in group for text in one.sentences]]
    ref_ids = torch.tensor([i for one in group for i in one.ref_ids], device=pixels.device)
    scores, _ = score_maps(torch.cat(list(grids)), pixels[own], texts, ref_ids, aux, config.prms_mask)
    return scores.float()


def fill_responses(
    network: Step1,
    aux: Clip | None,
    dataset: Dataset,
    store: ResponseStore,
    config: ResponsesConfig,
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    """Write the missing blocks of the store; advance(n) is called with the number of sentences done.

    aux: the frozen CLIP that scores each map for PRMS, None to leave that out. The memory in use does not
    grow with the data set: a block is written as soon as its last row is there.
    """
    all_groups = group_by_image(dataset)
    for block in store.missing_blocks(scored=aux is not None):
        rows = store.rows_of_block(block)
        logits = np.empty((len(rows), *store.grid_hw), np.float32)
        scores = np.empty(len(rows), np.float32)
        groups = [one for one in all_groups if one.rows.start < rows.stop and one.rows.stop > rows.start]
        for group in chunks(groups, config.batch_size):
            pixels = load_pixels(dataset, group, store.input_size, device)
            grids = respond(network, pixels, group)
            found = torch.cat(grids).cpu().numpy()
            found_scores = np.zeros(len(found), np.float32)
            if aux is not None:
                found_scores = score_selection(grids, pixels, group, aux, config).cpu().numpy()
            first, last = max(group[0].rows.start, rows.start), min(group[-1].rows.stop, rows.stop)
            inside = slice(first - group[0].rows.start, last - group[0].rows.start)
            logits[first - rows.start : last - rows.start] = found[inside]
            scores[first - rows.start : last - rows.start] = found_scores[inside]
            advance(last - first)
        store.write_block(block, logits, None if aux is None else scores)
    if aux is not None:
        store.select_maps()


@torch.inference_mode()
def segment(network: Step2, pixels: Tensor, group: Sequence[ImageGroup]) -> list[Tensor]:
    """The logits of each image's sentences at input size, float32 (n_i, S, S); foreground where > 0."""
    levels = network.encode_image(pixels)
    distinct = {text: i for i, text in enumerate(dict.fromkeys(t for one in group for t in one.sentences))}
    words = network.encode_text(network.clip.tokenize(list(distinct)).to(pixels.device))
    results = []
    for i, one in enumerate(group):
        c1, c2, c3, c4 = (level[i : i + 1] for level in levels)
        logits = network.segment((c1, c2, c3, c4), words[[distinct[text] for text in one.sentences]])
        assert isinstance(logits, Tensor)  # evaluation mode: one head
        results.append(logits.float())
    return results


@torch.inference_mode()
def open_store(path: Path, dataset: Dataset, network: Step1, input_size: int, step1_digest: str) -> ResponseStore:
    """The response store of a data set, one row per sentence: with the blocks of an earlier run, or without any."""
    device = next(network.parameters()).device
    grid = network.encode_image(torch.zeros(1, 3, input_size, input_size, device=device)).shape[-2:]
    expressions = [
        (e.sent_id, ref.ref_id, one.image_id)
        for one in group_by_image(dataset)
        for ref in one.refs
        for e in ref.expressions
    ]
    sizes = {image_id: size_of(image) for image_id, image in dataset.images.items()}
    return ResponseStore.create(
        path,
        sent_id=[sent_id for sent_id, _, _ in expressions],
        ref_id=[ref_id for _, ref_id, _ in expressions],
        image_hw=[sizes[image_id] for _, _, image_id in expressions],
        grid_hw=(grid[0], grid[1]),
        input_size=input_size,
        attributes={"dataset": dataset.name, "split": dataset.split, "step1": step1_digest},
    )
