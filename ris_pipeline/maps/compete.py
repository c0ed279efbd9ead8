"""Maps of one image against each other: of the things that are spoken of, the one that responds most keeps the pixel.

A sentence that means one thing of an image says where the other things are not. TRIS leaves that unused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ris_pipeline.arrays import BoolMask, Maps
from ris_pipeline.datasets.records import Dataset, ImageGroup
from ris_pipeline.maps.respond import Responder, load_pixels

# Of a map's maximum. A map that is as high where another has its peak means that thing as well: the same object, "the
# two men" and one of them, a man and the hat that he wears.
SAME_THING = 0.9
SAME_THING_DRAWN = 0.5  # where the other sentence was drawn: more often than another ref, it means the object itself


def find_rivals(maps: Maps, sentences: Sequence[Iterable[str]]) -> BoolMask:
    """Return, bool (R, R), whether map j of float32 (R, H, W) may take pixels from map i of the same image.

    `sentences` of each map. It may not where both have a sentence in common, or where map i reaches SAME_THING of its
    maximum at the peak of map j: a whole is not taken from by its parts, but takes from them what is not theirs.
    """
    simple = [set(map(_simplify, own)) for own in sentences]
    is_apart = np.array([[own.isdisjoint(other) for other in simple] for own in simple])
    rivals: BoolMask = is_apart & (_at_peaks(maps, maps) < SAME_THING)
    return rivals


def find_drawn_rivals(maps: Maps, drawn: Maps) -> BoolMask:
    """Return, bool (R, M), which of the maps of M drawn sentences may take pixels from each of R maps of an image.

    Those where both maps are below SAME_THING_DRAWN of their maximum at the other's peak.
    """
    rivals: BoolMask = np.maximum(_at_peaks(maps, drawn), _at_peaks(drawn, maps).T) < SAME_THING_DRAWN
    return rivals


def let_compete(maps: Maps, others: Maps, rivals: BoolMask) -> Maps:
    """Return the maps float32 (R, H, W) with 0 where one of a map's rivals is larger, of the others (M, H, W).

    `rivals` bool (R, M). They are compared after division by their maxima, so each map keeps at least its peak.
    """
    relative = _relative(others)
    kept = [
        np.where((own >= relative[may_take]).all(axis=0), given, 0)
        for given, own, may_take in zip(maps, _relative(maps), rivals, strict=True)
    ]
    return np.stack(kept)


def separate_masks(masks: NDArray[np.bool_], maps: Maps, sentences: Sequence[str]) -> NDArray[np.bool_]:
    """Return the masks bool (K, H, W) of K sentences about an image without what their rivals among them take.

    `maps` float32 (K, H, W). Which of the sentences mean one object is not told.
    """
    competing = let_compete(maps, maps, find_rivals(maps, [[sentence] for sentence in sentences]))
    return masks & (competing > 0)


def draw_sentences(dataset: Dataset, n: int, seed: int) -> list[str]:
    """Return n different sentences of a data set, fewer where it has no more, drawn by a seed."""
    distinct = sorted({_simplify(e.sentence): e.sentence for ref in dataset.refs for e in ref.expressions}.values())
    return [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))[:n]]


class DrawnSentences:
    """Sentences of a data set that are about other images, as further rivals: `n` of them, the same for all images."""

    def __init__(self, dataset: Dataset, responder: Responder, n: int, seed: int) -> None:
        self.dataset, self.responder = dataset, responder
        self.sentences = draw_sentences(dataset, n, seed)
        with torch.no_grad():
            self._texts = responder.encode_texts(self.sentences)

    @torch.no_grad()
    def respond(self, group: ImageGroup) -> torch.Tensor:
        """Return their score grids float32 (M, h, w) about the image of the group, without its own sentences."""
        kept = _find_others(self.sentences, group.sentences)
        (image,) = self.responder.encode_images(load_pixels(self.dataset, [group], self.responder))
        return self.responder.respond(image, self._texts[kept]).float().cpu()


def _find_others(sentences: Sequence[str], own: Collection[str]) -> list[int]:
    known = {_simplify(sentence) for sentence in own}
    return [i for i, sentence in enumerate(sentences) if _simplify(sentence) not in known]


def _simplify(sentence: str) -> str:
    return " ".join(sentence.casefold().split())


def _relative(maps: Maps) -> Maps:
    relative: Maps = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-5)
    return relative


def _at_peaks(maps: Maps, others: Maps) -> NDArray[np.float32]:
    """Return how high map i is at the peak of map j of the others, of its own maximum, float32 (R, M)."""
    peaks = others.reshape(len(others), -1).argmax(axis=1)
    return _relative(maps).reshape(len(maps), -1)[:, peaks]
