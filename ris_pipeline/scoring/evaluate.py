"""What the stages made, scored sentence by sentence; the maps in memory are those of one ref, image or batch.

Each function is a generator over the refs of a data set, image by image. A ref without a box or without a mask
gives outcomes of None for what that would have decided. `share` (`process.ranks.share`) leaves those images that fall
to this process; without it all do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ris_pipeline.arrays import FOREGROUND, BoolMask, Maps, Pixels
from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.datasets.io.images import load_image, size_of
from ris_pipeline.datasets.io.labels import load_label
from ris_pipeline.datasets.records import Dataset, Expression, Ref, group_by_image
from ris_pipeline.errors import RisError
from ris_pipeline.maps.compete import separate_masks
from ris_pipeline.maps.respond import Responder, read_batches, respond, split_batches
from ris_pipeline.maps.rule import compute_map, compute_mask, show_map
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.scoring.metrics import Outcome, box_area, score_expression

Share = Callable[[Sequence[Any]], Iterator[Any]]


def leave_out_small_boxes(dataset: Dataset, share: float) -> Dataset:
    """Return the data set without the refs whose box covers at most `share` of its image; all of it for 0.

    TRIS's evaluation leaves out 5 % on ReferIt. A ref without a box stays. Raises RisError where no ref is left.
    """
    if share == 0:
        return dataset
    kept = tuple(ref for ref in dataset.refs if _box_share(dataset, ref) > share)
    if not kept:
        raise RisError(
            f"{dataset.name} {dataset.split}: no box covers more than {share:.0%} of its image; lower skip_small_boxes"
        )
    return replace(dataset, refs=kept)


def evaluate_maps(dataset: Dataset, store: ResponseStore, share: Share = iter) -> Iterator[Outcome]:
    """Yield the outcome of every sentence's map and mask, by the store's rule."""
    for ref in _refs_by_image(dataset, share):
        maps = _compute_maps(store, ref, range(len(ref.expressions)))
        yield from _score_sentences(dataset, ref, maps.numpy(), compute_mask(maps, store.rule).numpy())


def evaluate_choice(dataset: Dataset, store: ResponseStore, share: Share = iter) -> Iterator[Outcome]:
    """Yield one outcome per ref, of the map that PRMS selected, weighted with the ref's number of sentences.

    Raises RisError where the responses were dumped without PRMS.
    """
    for ref in _refs_by_image(dataset, share):
        selected = store.selected(ref.ref_id)
        maps = _compute_maps(store, ref, [selected])
        (response,), (prediction,) = maps.numpy(), compute_mask(maps, store.rule).numpy()
        outcome = score_sentence(ref, ref.expressions[selected], response, prediction, *load_truth(dataset, ref))
        yield replace(outcome, weight=len(ref.expressions))


def evaluate_pseudolabels(dataset: Dataset, folder: Path, share: Share = iter) -> Iterator[Outcome]:
    """Yield one outcome per ref, of its pseudo-label, weighted with its number of sentences.

    The mask is label == FOREGROUND: what is to be ignored counts as background. A mask has no largest value to point
    with, so PointIt and PointM are None. The sentence is the ref's first.
    """
    for ref in _refs_by_image(dataset, share):
        mask = load_label(label_path(folder, ref.ref_id)) == FOREGROUND
        outcome = score_sentence(ref, ref.expressions[0], mask.astype(np.float32), mask, *load_truth(dataset, ref))
        yield replace(outcome, weight=len(ref.expressions), point_it=None, point_m=None)


def evaluate_network(
    dataset: Dataset,
    responder: Responder,
    batch_size: int,
    clean: Callable[[Pixels, NDArray[np.bool_]], NDArray[np.bool_]] | None = None,
    share: Share = iter,
    *,
    compete: bool = False,
) -> Iterator[Outcome]:
    """Yield the outcome of every sentence by a network: the point is the map's largest value, the mask by its rule.

    `batch_size` images are encoded at once, each for all its sentences; it changes the speed only. `clean` returns
    better masks, bool (K, H, W), of an image uint8 (H, W, 3) and those of the rule. `compete`: the sentences of an
    image compete for its pixels before that.
    """
    batches = list(split_batches(group_by_image(dataset), batch_size))
    for groups, pixels in read_batches(dataset, share(batches), responder):
        for group, grids in zip(groups, respond(responder, pixels, groups), strict=True):
            image_hw = size_of(dataset.images[group.image_id])
            maps = compute_map(grids, responder.rule, responder.input_size, image_hw)
            masks = compute_mask(maps, responder.rule).cpu().numpy()
            if compete:
                masks = separate_masks(masks, show_map(maps, responder.rule).cpu().numpy(), group.sentences)
            if clean:
                masks = clean(load_image(dataset.images[group.image_id]), masks)
            ends = np.cumsum([len(ref.expressions) for ref in group.refs])[:-1]
            for ref, *own in zip(group.refs, np.split(maps.cpu().numpy(), ends), np.split(masks, ends), strict=True):
                yield from _score_sentences(dataset, ref, *own)


def evaluate_chance(dataset: Dataset, seed: int = 0, share: Share = iter) -> Iterator[Outcome]:
    """Yield what knowing nothing scores on every sentence: a random point, and the whole image as the mask.

    The point is uniform over the pixels and drawn from `seed` and the sentence's id, in whatever order.
    """
    for ref in _refs_by_image(dataset, share):
        height, width = size_of(dataset.images[ref.image_id])
        responses = np.zeros((len(ref.expressions), height, width), np.float32)
        for response, expression in zip(responses, ref.expressions, strict=True):
            response.flat[np.random.default_rng([seed, expression.sent_id]).integers(height * width)] = 1
        yield from _score_sentences(dataset, ref, responses, np.ones(responses.shape, dtype=bool))


def in_order(dataset: Dataset, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes of several processes in the order in which one alone yields them."""
    place = {ref.ref_id: k for k, ref in enumerate(_refs_by_image(dataset))}
    return sorted(outcomes, key=lambda outcome: place[outcome.ref_id])  # stable: of a ref they are in order


def _refs_by_image(dataset: Dataset, share: Share = iter) -> Iterator[Ref]:
    """Yield the refs in the row order of the responses, whose blocks are then read once each."""
    for group in share(group_by_image(dataset)):
        yield from group.refs


def _compute_maps(store: ResponseStore, ref: Ref, which: range | list[int]) -> Tensor:
    """Return the response maps float32 (len(which), H, W) of some of a ref's sentences, counted from 0."""
    rows = store.rows_of_ref(ref.ref_id)
    if store.sent_id[rows].tolist() != [expression.sent_id for expression in ref.expressions]:
        raise RisError(f"{store.path}: ref {ref.ref_id} has other sentences in the data set; run `ris dump-responses`")
    height, width = store.image_hw[rows.start].tolist()
    grids = torch.from_numpy(store.read_grids([rows[k] for k in which]))
    return compute_map(grids, store.rule, store.input_size, (height, width))


def _score_sentences(dataset: Dataset, ref: Ref, responses: Maps, predictions: NDArray[np.bool_]) -> Iterator[Outcome]:
    """Yield the outcome of each sentence of a ref, of responses and predictions (K, H, W)."""
    truth = load_truth(dataset, ref)
    for expression, response, prediction in zip(ref.expressions, responses, predictions, strict=True):
        yield score_sentence(ref, expression, response, prediction, *truth)


def load_truth(dataset: Dataset, ref: Ref) -> tuple[BoolMask | None, BoolMask | None]:
    """Return a ref's mask and the pixels that are ignored, bool (H, W), None where there is no mask or none ignored."""
    return dataset.load_mask(ref) if ref.has_mask else None, dataset.load_ignored(ref)


def score_sentence(
    ref: Ref,
    expression: Expression,
    response: Maps,
    prediction: BoolMask,
    mask: BoolMask | None,
    ignored: BoolMask | None,
) -> Outcome:
    """Return the outcome of a map float32 (H, W) and a mask bool (H, W) against a ref's boxes and its `load_truth`."""
    return score_expression(
        ref_id=ref.ref_id,
        sent_id=expression.sent_id,
        response=response,
        prediction=prediction,
        boxes_xyxy=ref.boxes_xyxy,
        edges_xyxy=ref.edges_xyxy,
        mask=mask,
        ignored=ignored,
        exists=ref.exists,
    )


def _box_share(dataset: Dataset, ref: Ref) -> float:
    if ref.box_xyxy is None:
        return 1.0
    height, width = size_of(dataset.images[ref.image_id])
    return box_area(ref.box_xyxy) / (height * width)
