"""The records of a data set: images, refs (an object each, or none or several) and the expressions that name them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ris_pipeline.arrays import BoolMask, Box
from ris_pipeline.datasets.io.files import read_size
from ris_pipeline.datasets.io.segmentations import extent_of, load_segmentation
from ris_pipeline.datasets.record_checks import check_extent
from ris_pipeline.errors import RisError

ABSENT = 2**40  # added to a ref's id: the ref of those of its sentences that are wrong about the image


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence about an image."""

    sent_id: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Image:
    """One image file.

    hw: (height, width), None if only the file has it. upright: whether boxes and masks are of the picture as its EXIF
    orientation displays it; those of the benchmarks are of the pixels as stored.
    """

    image_id: int
    path: Path
    hw: tuple[int, int] | None
    upright: bool = False


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is annotated of one object.

    box_xyxy: left, top, right, bottom in pixels, as annotated; right and bottom are the last pixels inside where
    box_is_inclusive (ReferIt), else one past them. segmentation: COCO polygons, one RLE or several, or the path of a
    mask PNG; decoded by Dataset.load_mask only when asked for.
    """

    box_xyxy: Box | None = None
    segmentation: Any | None = None
    box_is_inclusive: bool = False

    @property
    def edges_xyxy(self) -> Box | None:
        """The box with right and bottom one past the last pixel, whatever its file's convention."""
        if self.box_xyxy is None or not self.box_is_inclusive:
            return self.box_xyxy
        left, top, right, bottom = self.box_xyxy
        return left, top, right + 1, bottom + 1


@dataclass(frozen=True, slots=True)
class Ref:
    """What some expressions mean in one image: an object, several of them, or nothing that is there."""

    ref_id: int
    image_id: int
    split: str  # as its file names it; ReferIt's "val" is part of the paper's "train"
    expressions: tuple[Expression, ...]
    annotations: tuple[Annotation, ...] = (Annotation(),)  # one for each object; none where there is none in the image
    ignored: Any | None = None  # segmentation of pixels that count neither for nor against a prediction
    # Annotated objects of its category in its image, itself included; None without categories, and for several objects.
    # Reports break scores down by it; nothing learns from it.
    n_same_kind: int | None = None
    name: str | None = None  # what its file calls it, None if that is only the number

    @property
    def label(self) -> str:
        """The ref's name for messages, or its number."""
        return self.name or str(self.ref_id)

    @property
    def exists(self) -> bool:
        """Whether the expressions mean anything in the image."""
        return bool(self.annotations)

    @property
    def has_mask(self) -> bool:
        """Whether it is known which pixels are meant: of every object; of no object, none are."""
        return all(annotation.segmentation is not None for annotation in self.annotations)

    @property
    def has_truth(self) -> bool:
        """Whether there is a box or a mask to score against."""
        return bool(self.boxes_xyxy) or self.has_mask

    @property
    def mask_files(self) -> list[Path]:
        """The mask PNGs of its objects."""
        segmentations = (annotation.segmentation for annotation in self.annotations)
        return [segmentation for segmentation in segmentations if isinstance(segmentation, Path)]

    @property
    def boxes_xyxy(self) -> tuple[Box, ...]:
        """The box of each object, as annotated; empty where one lacks its box."""
        boxes = tuple(a.box_xyxy for a in self.annotations if a.box_xyxy is not None)
        return boxes if len(boxes) == len(self.annotations) else ()

    @property
    def box_xyxy(self) -> Box | None:
        """The box around all boxes, as annotated; None without them."""
        return _span(self.boxes_xyxy)

    @property
    def edges_xyxy(self) -> Box | None:
        """The box around all boxes, right and bottom one past the last pixel; None without them."""
        return _span([a.edges_xyxy for a in self.annotations if a.edges_xyxy is not None]) if self.boxes_xyxy else None


def _span(boxes: Sequence[Box]) -> Box | None:
    if len(boxes) <= 1:
        return boxes[0] if boxes else None
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    remarks: a line for each kind of record that was left out or looks odd. absent: refs of the train split that mean
    nothing in their image: nothing is learnt of them, but their sentences are counter-examples for the image's others.
    """

    name: str
    split: str
    images: dict[int, Image]
    refs: tuple[Ref, ...]
    remarks: tuple[str, ...] = ()
    absent: tuple[Ref, ...] = ()

    @property
    def n_expressions(self) -> int:
        """The number of expressions, the sample count of the paper's tables."""
        return count_expressions(self.refs)

    @property
    def has_truth(self) -> bool:
        """Whether any ref has a box or a mask to score against."""
        return any(ref.has_truth for ref in self.refs)

    def first_refs(self, n: int) -> Dataset:
        """Return the data set with its first n refs only; 0: with all."""
        return replace(self, refs=self.refs[: n or None])

    def load_mask(self, ref: Ref) -> BoolMask:
        """Return the mask of all objects that the ref means, bool (H, W); False everywhere where that is none.

        Raises RisError where an object has no mask, or one that cannot be decoded, is empty or does not fit its box.
        """
        if not ref.has_mask:
            raise RisError(f"{self._where(ref)}: there is no mask; score it with a metric that needs boxes only")
        image = self.images[ref.image_id]
        if not ref.exists:
            return np.zeros(image.hw or read_size(image.path, upright=image.upright), dtype=bool)
        mask = self._load_object(ref, ref.annotations[0])
        for annotation in ref.annotations[1:]:
            mask = mask | self._load_object(ref, annotation)
        return mask

    def load_ignored(self, ref: Ref) -> BoolMask | None:
        """Return the pixels that count neither way, bool (H, W), None for none; RisError where they are broken."""
        return None if ref.ignored is None else self._load_segmentation(ref, ref.ignored)

    def _load_object(self, ref: Ref, annotation: Annotation) -> BoolMask:
        mask = self._load_segmentation(ref, annotation.segmentation)
        if isinstance(annotation.segmentation, Path):  # run lengths and polygons were compared when they were read
            check_extent(annotation.edges_xyxy, extent_of(mask), mask.shape, self._where(ref))
        return mask

    def _load_segmentation(self, ref: Ref, segmentation: Any) -> BoolMask:
        try:
            return load_segmentation(segmentation, self.images[ref.image_id].hw)
        except ValueError as error:
            raise RisError(f"{self._where(ref)}: bad segmentation: {error}") from error

    def _where(self, ref: Ref) -> str:
        return f"{self.name} {self.split}: ref {ref.label}, image {self.images[ref.image_id].path.name}"

    def siblings(self, ref: Ref) -> tuple[Ref, ...]:
        """Return the other refs of the ref's image, in the order of the data set, then those about nothing there."""
        others = (*self.refs_of_image[ref.image_id], *self._absent_of_image.get(ref.image_id, ()))
        return tuple(other for other in others if other.ref_id != ref.ref_id)

    @cached_property
    def refs_of_image(self) -> dict[int, tuple[Ref, ...]]:
        """The refs of each image by its id, both in the order of the data set."""
        return _by_image(self.refs)

    @cached_property
    def _absent_of_image(self) -> dict[int, tuple[Ref, ...]]:
        return _by_image(self.absent)


def count_expressions(refs: Iterable[Ref]) -> int:
    """Return the number of expressions of some refs."""
    return sum(len(ref.expressions) for ref in refs)


def _by_image(refs: Iterable[Ref]) -> dict[int, tuple[Ref, ...]]:
    refs_of_image: defaultdict[int, list[Ref]] = defaultdict(list)
    for ref in refs:
        refs_of_image[ref.image_id].append(ref)
    return {image_id: tuple(refs) for image_id, refs in refs_of_image.items()}


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """One image, its refs, and the rows that their sentences take in the responses."""

    image_id: int
    refs: tuple[Ref, ...]
    rows: range

    @property
    def sentences(self) -> list[str]:
        """The sentences of all refs, in row order."""
        return [expression.sentence for ref in self.refs for expression in ref.expressions]

    @property
    def ref_ids(self) -> list[int]:
        """The ref of each row."""
        return [ref.ref_id for ref in self.refs for _ in ref.expressions]


def group_by_image(dataset: Dataset) -> list[ImageGroup]:
    """Return each image with its refs, in the order of the images' first refs: the row order of the responses."""
    groups = []
    start = 0
    for image_id, refs in dataset.refs_of_image.items():
        stop = start + sum(len(ref.expressions) for ref in refs)
        groups.append(ImageGroup(image_id, refs, range(start, stop)))
        start = stop
    return groups


@dataclass(frozen=True, slots=True)
class Fault:
    """A record or file that cannot be used: one line on which and why, and the names that exclude it.

    names: its ref id, its image's name, or both; none where only mending helps.
    """

    text: str
    names: tuple[str, ...] = ()


@dataclass
class Reading:
    """What a format's reader found of a split: usable records, and all that cannot be used."""

    images: dict[int, Image] = field(default_factory=dict)
    refs: list[Ref] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    other_splits: Counter[str] = field(default_factory=Counter)  # refs of splits that the card does not have
    n_excluded: int = 0  # records that the card leaves out
    n_silent: int = 0  # refs without sentences, left out
    n_maskless: int = 0  # refs that are used without the mask that their file has
    n_other_kind: int = 0  # refs whose category is not their annotation's
    n_unnamed: int = 0  # annotations on the split's images that no ref names

    @contextmanager
    def record(self, *names: object) -> Iterator[list[str]]:
        """Collect instead of raise: a RisError in the block becomes a Fault of the record with these names.

        Names may be added to the list that it yields.
        """
        known = [str(name) for name in names]
        try:
            yield known
        except RisError as error:
            self.faults.append(Fault(str(error), tuple(known)))


def hash_names(*names: str) -> int:
    """Return an id made of names: a number below 2^52, which every JSON reader keeps exact."""
    return int(hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:13], 16)


def hash_expressions(owner: Sequence[str], sentences: Iterable[str]) -> tuple[Expression, ...]:
    """Return the sentences with ids that are hashes of the owner's names, the sentence and how often it came before."""
    seen: Counter[str] = Counter()
    expressions = []
    for sentence in sentences:
        expressions.append(Expression(hash_names(*owner, sentence, str(seen[sentence])), sentence))
        seen[sentence] += 1
    return tuple(expressions)
