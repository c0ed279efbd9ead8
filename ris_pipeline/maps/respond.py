"""What a responder answers for a data set: each image is encoded once for all its sentences."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ris_pipeline.arrays import Pixels
from ris_pipeline.config import ResponsesConfig
from ris_pipeline.datasets.io.images import load_image, resize_square, size_of, to_batch
from ris_pipeline.datasets.records import Dataset, ImageGroup, group_by_image
from ris_pipeline.maps.rule import Rule
from ris_pipeline.maps.select import score_maps
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.networks.clip import Clip, encode_each
from ris_pipeline.process.ahead import run_ahead
from ris_pipeline.process.ranks import is_first, wait

AHEAD = 64  # images that are read before their turn: a whole batch as configured, 20 MB


class Responder(Protocol):
    """A network as a dump, a prediction, a score and the report ask it, whatever its method, trained or not."""

    @property
    def input_size(self) -> int:
        """Pixels along a side of the square images that it reads."""

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Height and width of its score grids."""

    @property
    def rule(self) -> Rule:
        """How one of its grids becomes a map and a mask."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def n_tokens(self) -> int:
        """How many tokens of a sentence it reads, start and end included."""

    @property
    def latin_only(self) -> bool:
        """Whether its tokenizer knows hardly a script but Latin."""

    def encode_images(self, pixels: Tensor) -> list[Any]:
        """Return the encoding of each of the images float32 (B, 3, S, S) on its device, by ImageNet's statistics."""

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return the encodings float (N, …) of N sentences."""

    def respond(self, image: Any, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return the score grids float32 (n, h, w) of n encoded sentences about one encoded image.

        `ref_ids`: the object that each sentence means. A method may let sentences of other objects compete with it;
        without ids each sentence stands alone.
        """

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences of which it does not read the end."""


class ResponderWrapper:
    """A responder that asks another one: what a subclass does not override is the other's."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self.input_size, self.grid_hw, self.rule = responder.input_size, responder.grid_hw, responder.rule
        self.device, self.n_tokens, self.latin_only = responder.device, responder.n_tokens, responder.latin_only

    def encode_images(self, pixels: Tensor) -> list[Any]:
        """Return the encoding of each of the images float32 (B, 3, S, S)."""
        return self._responder.encode_images(pixels)

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return the encodings float (N, …) of N sentences."""
        return self._responder.encode_texts(sentences)

    def respond(self, image: Any, texts: Tensor, ref_ids: Sequence[int] | None = None) -> Tensor:
        """Return the score grids float32 (n, h, w) of n encoded sentences about one encoded image."""
        return self._responder.respond(image, texts, ref_ids)

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences of which it does not read the end."""
        return self._responder.find_cut(sentences)


def split_batches(groups: Sequence[ImageGroup], size: int) -> Iterator[Sequence[ImageGroup]]:
    """Yield the groups in order, `size` images at a time."""
    for start in range(0, len(groups), size):
        yield groups[start : start + size]


def load_pixels(dataset: Dataset, groups: Sequence[ImageGroup], responder: Responder) -> Tensor:
    """Return the images of the groups as the responder reads them, float32 (B, 3, S, S) on its device."""
    return to_batch([_read(dataset, group, responder.input_size) for group in groups], responder.device)


def read_batches(
    dataset: Dataset, batches: Iterable[Sequence[ImageGroup]], responder: Responder
) -> Generator[tuple[Sequence[ImageGroup], Tensor]]:
    """Yield each of the batches with its `load_pixels`; the images of the next one are read meanwhile."""
    batches, copy = tee(batches)
    groups_ahead = chain.from_iterable(copy)
    with closing(run_ahead(lambda group: _read(dataset, group, responder.input_size), groups_ahead, AHEAD)) as squares:
        for groups in batches:
            yield groups, to_batch(list(islice(squares, len(groups))), responder.device)


def _read(dataset: Dataset, group: ImageGroup, size: int) -> Pixels:
    return resize_square(load_image(dataset.images[group.image_id]), size)


@torch.no_grad()  # not inference_mode: a method may take gradients inside
def respond(responder: Responder, pixels: Tensor, groups: Sequence[ImageGroup]) -> list[Tensor]:
    """Return the score grids float32 (n_i, h, w) of each image's sentences, each sentence encoded once."""
    images = responder.encode_images(pixels)
    texts = encode_each(responder.encode_texts, [text for group in groups for text in group.sentences])
    own = torch.split(texts, [len(group.sentences) for group in groups])
    return [
        responder.respond(image, part, group.ref_ids).float()
        for image, part, group in zip(images, own, groups, strict=True)
    ]


@torch.no_grad()  # not inference_mode: a method may take gradients inside
def score_selection(
    grids: Sequence[Tensor], pixels: Tensor, groups: Sequence[ImageGroup], aux: Clip, config: ResponsesConfig
) -> Tensor:
    """Return the PRMS score of every row of the groups, float32 (n,): one pass of the frozen CLIP for all maps."""
    device = pixels.device
    counts = torch.tensor([len(grid) for grid in grids], device=device)
    own = torch.repeat_interleave(torch.arange(len(grids), device=device), counts)
    sentences = [text for group in groups for text in group.sentences]
    texts = encode_each(lambda distinct: aux.encode_text(aux.tokenize(distinct)), sentences)
    ref_ids = torch.tensor([i for group in groups for i in group.ref_ids], device=device)
    scores = score_maps(
        torch.cat(list(grids)), pixels[own], texts, ref_ids, aux, config.prms_mask, own, config.prms_contrast
    )
    return scores.float()


def fill_responses(
    responder: Responder,
    aux: Clip | None,
    dataset: Dataset,
    store: ResponseStore,
    blocks: Iterable[int],
    config: ResponsesConfig,
    advance: Callable[[int], None],
) -> None:
    """Write the given blocks of the store, then PRMS's choice; advance(n) is called with the number of sentences done.

    Several processes write blocks of their own; the first chooses when all are there.

    aux: the frozen CLIP that scores each map for PRMS, None to leave that out. The memory in use does not
    grow with the data set: a block is written as soon as its last row is there.
    """
    all_groups = group_by_image(dataset)
    for block in blocks:
        rows = store.rows_of_block(block)
        block_grids = np.empty((len(rows), *store.grid_hw), np.float32)
        block_scores = np.empty(len(rows), np.float32)
        in_block = [group for group in all_groups if group.rows.start < rows.stop and group.rows.stop > rows.start]
        for groups, pixels in read_batches(dataset, split_batches(in_block, config.batch_size), responder):
            grids = respond(responder, pixels, groups)
            found = torch.cat(grids).cpu().numpy()
            scores = np.zeros(len(found), np.float32)
            if aux is not None:
                scores = score_selection(grids, pixels, groups, aux, config).cpu().numpy()
            first, last = max(groups[0].rows.start, rows.start), min(groups[-1].rows.stop, rows.stop)
            inside = slice(first - groups[0].rows.start, last - groups[0].rows.start)
            block_grids[first - rows.start : last - rows.start] = found[inside]
            block_scores[first - rows.start : last - rows.start] = scores[inside]
            advance(last - first)
        store.write_block(block, block_grids, None if aux is None else block_scores)
    wait()
    if aux is not None and is_first():
        store.select_maps()


def open_store(path: Path, dataset: Dataset, responder: Responder, attributes: Mapping[str, Any]) -> ResponseStore:
    """Return the response store of a data set, a row per sentence: with the blocks of an earlier run, or none.

    `attributes`: JSON values that the store keeps, such as the digest of the network's artifact.
    """
    expressions = [
        (e.sent_id, ref.ref_id, group.image_id)
        for group in group_by_image(dataset)
        for ref in group.refs
        for e in ref.expressions
    ]
    sizes = {image_id: size_of(image) for image_id, image in dataset.images.items()}
    return ResponseStore.create(
        path,
        sent_id=[sent_id for sent_id, _, _ in expressions],
        ref_id=[ref_id for _, ref_id, _ in expressions],
        image_hw=[sizes[image_id] for _, _, image_id in expressions],
        grid_hw=responder.grid_hw,
        input_size=responder.input_size,
        rule=responder.rule,
        attributes={"dataset": dataset.name, "split": dataset.split, **attributes},
    )
