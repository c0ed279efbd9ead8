"""The records of a data set: images, refs (one object each) and the expressions that name them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ris_pipeline.arrays import BoolMask, Box
from ris_pipeline.datasets.io.files import MAX_PIXELS, is_turned
from ris_pipeline.datasets.io.segmentations import extent_of, find_extent, is_coordinate, load_segmentation
from ris_pipeline.errors import RisError

# COCO rounds its boxes to hundredths, ReferIt's are whole pixels: an edge may lie up to a pixel outside.
_BOX_SLACK = 1.0
_LARGEST_ID = 2**63 - 1  # of the responses' int64
# How far a box may be from its mask's. COCO's polygons and boxes differ by up to 4.2 pixels in 717 refs looked at.
# Boxes drawn by hand are looser; more than this is another object, another order or another unit.
_MASK_SLACK_PIXELS = 8.0
_MASK_SLACK_SHARE = 0.05  # of the image's longer side, where the boxes share half of their union


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence that refers to an object."""

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
class Ref:
    """One object in one image, with every expression that refers to it.

    split: as its file names it (ReferIt's "val" is part of the paper's "train").
    box_xyxy: left, top, right, bottom in pixels, as annotated; right and bottom are the last pixels inside where
    box_is_inclusive (ReferIt), else one past them. segmentation: COCO polygons, one RLE or
    several, or the path of a mask PNG; decoded by Dataset.load_mask only when asked for.
    n_same_kind: annotated objects of the ref's category in its image, including it; None where the annotations
    have no categories. Reports break scores down by it; nothing learns from it.
    name: what its file calls it, None if that is only the number.
    """

    ref_id: int
    image_id: int
    split: str
    expressions: tuple[Expression, ...]
    box_xyxy: Box | None
    segmentation: Any | None
    n_same_kind: int | None = None
    name: str | None = None
    box_is_inclusive: bool = False

    @property
    def label(self) -> str:
        """The ref's name for messages, or its number."""
        return self.name or str(self.ref_id)

    @property
    def edges_xyxy(self) -> Box | None:
        """The box with right and bottom one past the last pixel, whatever its file's convention."""
        if self.box_xyxy is None or not self.box_is_inclusive:
            return self.box_xyxy
        left, top, right, bottom = self.box_xyxy
        return left, top, right + 1, bottom + 1


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    remarks: a line for each kind of record that was left out or looks odd.
    """

    name: str
    split: str
    images: dict[int, Image]
    refs: tuple[Ref, ...]
    remarks: tuple[str, ...] = ()

    @property
    def n_expressions(self) -> int:
        """The number of expressions, the sample count of the paper's tables."""
        return sum(len(ref.expressions) for ref in self.refs)

    @property
    def has_truth(self) -> bool:
        """Whether any ref has a box or a mask to score against."""
        return any(ref.box_xyxy is not None or ref.segmentation is not None for ref in self.refs)

    def first_refs(self, n: int) -> Dataset:
        """Return the data set with its first n refs only; 0: with all."""
        return replace(self, refs=self.refs[: n or None])

    def load_mask(self, ref: Ref) -> BoolMask:
        """Return the object's mask, bool (H, W), True on the object.

        Raises RisError where the ref has no mask, or one that cannot be decoded, is empty or does not fit its box.
        """
        image = self.images[ref.image_id]
        where = f"{self.name} {self.split}: ref {ref.label}, image {image.path.name}"
        if ref.segmentation is None:
            raise RisError(f"{where}: there is no mask; score it with a metric that needs boxes only")
        try:
            mask = load_segmentation(ref.segmentation, image.hw)
        except ValueError as error:
            raise RisError(f"{where}: bad segmentation: {error}") from error
        if isinstance(ref.segmentation, Path):  # run lengths and polygons were compared when they were read
            check_extent(ref, extent_of(mask), mask.shape, where)
        return mask

    def siblings(self, ref: Ref) -> tuple[Ref, ...]:
        """Return the other refs of the ref's image, in the order of the data set."""
        return tuple(other for other in self.refs_of_image[ref.image_id] if other.ref_id != ref.ref_id)

    @cached_property
    def refs_of_image(self) -> dict[int, tuple[Ref, ...]]:
        """The refs of each image by its id, both in the order of the data set."""
        refs_of_image: defaultdict[int, list[Ref]] = defaultdict(list)
        for ref in self.refs:
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
    """What a format's reader found of a split: usable records, and all that cannot be used.

    other_splits: how many refs are of splits that the card does not have. n_excluded: records that the card leaves
    out. n_absent: sentences left out because they are marked as being about nothing in the image. n_other_kind: refs
    whose category is not their annotation's. n_unnamed: annotations on the split's images that no ref names.
    """

    images: dict[int, Image] = field(default_factory=dict)
    refs: list[Ref] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    other_splits: Counter[str] = field(default_factory=Counter)
    n_excluded: int = 0
    n_absent: int = 0
    n_other_kind: int = 0
    n_unnamed: int = 0

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


def drop_repeated(refs: Iterable[Ref], path: Path, faults: list[Fault]) -> tuple[Ref, ...]:
    """Return the refs without those that repeat an id of a ref or sentence before them; these become faults."""
    kept: list[Ref] = []
    ref_ids: set[int] = set()
    owner_of: dict[int, int] = {}  # sent_id: ref_id
    for ref in refs:
        where = f"{path}: ref {ref.label}"
        try:
            _check_id(ref.ref_id, f"{where}: ref_id")
            if ref.ref_id in ref_ids:
                raise RisError(f"{where}: its ref_id {ref.ref_id} occurs twice; ids must be unique")
            own: set[int] = set()
            for expression in ref.expressions:
                sent_id = expression.sent_id
                _check_id(sent_id, f"{where}: sent_id")
                if sent_id in owner_of or sent_id in own:
                    other = owner_of.get(sent_id, ref.ref_id)
                    raise RisError(f"{where}: its sent_id {sent_id} occurs twice, also in ref {other}")
                own.add(sent_id)
            ref_ids.add(ref.ref_id)
            owner_of |= dict.fromkeys(own, ref.ref_id)
            kept.append(ref)
        except RisError as error:
            faults.append(Fault(str(error), (str(ref.ref_id),)))
    return tuple(kept)


def check_ref(ref: Ref, image: Image, where: str) -> None:
    """Raise RisError, beginning with `where`, for a ref that no stage can use, whatever its format.

    Such are blank sentences, a mask that is empty or does not fit the image, and a box without area, in shares of the
    image instead of pixels, or far from that of the mask.
    """
    for expression in ref.expressions:
        if not expression.sentence.strip():
            raise RisError(f"{where}: its sentence {expression.sent_id} is empty")
    box, hw = ref.edges_xyxy, image.hw
    if box is not None and (box[2] <= box[0] or box[3] <= box[1]):
        raise RisError(f"{where}: its box {box} has no area")
    if box is not None and ref.box_xyxy is not None and max(ref.box_xyxy) <= 1 and (hw is None or max(hw) > 2):
        raise RisError(f"{where}: its box {ref.box_xyxy} is in shares of the image; it must be in pixels")
    if ref.segmentation is None or hw is None or isinstance(ref.segmentation, Path):
        return
    try:
        extent = find_extent(ref.segmentation, hw)
    except ValueError as error:
        raise RisError(f"{where}: bad segmentation: {error}") from error
    check_extent(ref, extent, hw, where)


def check_size(image: Image, hw: tuple[int, int]) -> None:
    """Raise RisError where the picture has another (height, width) than its record says."""
    if image.hw is None or image.hw == hw:
        return
    line = f"{image.path} has {hw[1]}×{hw[0]} pixels, its record says {image.hw[1]}×{image.hw[0]}"
    if image.hw == hw[::-1] and is_turned(image.path):
        raise RisError(
            f"{line}: its EXIF orientation turns it, and the annotations are of the turned picture; "
            "save it turned, without the orientation"
        )
    raise RisError(f"{line}: boxes and masks would not fit; put the original image there, or scale the annotations")


def check_extent(ref: Ref, extent: Box | None, hw: tuple[int, int], where: str) -> None:
    """Raise RisError where a mask is empty (None) or does not span the ref's box, up to a tolerance.

    Each edge may be off by 8 pixels, or by 5 % of the image's longer side where the boxes share half of their union.
    """
    if extent is None:
        raise RisError(f"{where}: its mask is empty")
    box = ref.edges_xyxy
    if box is None:
        return
    apart = max(abs(a - b) for a, b in zip(box, extent, strict=True))
    if apart <= _MASK_SLACK_PIXELS or (apart <= _MASK_SLACK_SHARE * max(hw) and _share(box, extent) >= 0.5):
        return
    of_box, of_mask = (", ".join(f"{value:g}" for value in edges) for edges in (box, extent))
    raise RisError(
        f"{where}: its box spans ({of_box}), its mask ({of_mask}): are both of one object, the box in pixels and in "
        "its format's order, and the run lengths down the columns?"
    )


def _share(a: Box, b: Box) -> float:
    """Return intersection over union of two boxes of some area."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def parse_box(values: Any, hw: tuple[int, int] | None, where: str) -> Box:
    """Return the box (left, top, right, bottom) in pixels, checked.

    hw: the image's size, None where it is not known: then only the near edges can be checked.
    Raises RisError, beginning with `where` (the file, the ref and the image), for anything but four
    finite numbers in order and inside the image.
    """
    if not isinstance(values, (list, tuple)) or len(values) != 4 or not all(map(is_coordinate, values)):
        raise RisError(f"{where}: the box must be four numbers, not {values!r:.200}")
    x1, y1, x2, y2 = (float(v) for v in values)
    if x2 < x1 or y2 < y1:
        raise RisError(f"{where}: the box {values} ends before it begins (it must be left, top, right, bottom)")
    height, width = hw if hw is not None else (math.inf, math.inf)
    if min(x1, y1) < -_BOX_SLACK or x2 > width + _BOX_SLACK or y2 > height + _BOX_SLACK:
        size = "" if hw is None else f" of {width}×{height} pixels"
        raise RisError(f"{where}: the box {values} lies outside the image{size}")
    return x1, y1, x2, y2


def parse_hw(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Return an image's height and width from its record. Raises RisError for none, and for more than MAX_PIXELS."""
    if type(height) is not int or type(width) is not int or height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RisError(f"{where}: its size must be whole numbers of at most {MAX_PIXELS:,} pixels in all")
    return height, width


def _check_id(number: Any, what: str) -> None:
    if type(number) is not int or not 0 <= number <= _LARGEST_ID:
        raise RisError(f"{what} {number!r:.80} must be a whole number from 0 to {_LARGEST_ID}")
