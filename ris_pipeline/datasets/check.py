"""The check of a whole data set: everything that is missing, faulty or odd, at once.

Worker processes decode the images and masks; nothing here imports torch.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ris_pipeline.artifacts.files import replacing
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import load_picture, read_remark
from ris_pipeline.datasets.load import describe, find_near, missing_paths, read_split
from ris_pipeline.datasets.overlap import find_listed, read_image_list
from ris_pipeline.datasets.record_checks import check_size
from ris_pipeline.datasets.records import Dataset, Fault, Image, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.process.console import Advance
from ris_pipeline.process.workers import map_processes

Item = TypeVar("Item")
T = TypeVar("T")

MISSING, EMPTY = "missing files", "empty files"
UNREADABLE, RECORDS = "unreadable annotation files", "records that cannot be used"
COUNTS = "splits of another size than the card says"
_BATCH = 32  # items that a worker process is given at once


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """The size of a split; n_expected: the card's number of sentences, None for any."""

    split: str
    n_images: int
    n_refs: int
    n_expressions: int
    n_expected: int | None
    n_excluded: int = 0

    @property
    def ok(self) -> bool:
        """Whether the number of sentences is the expected one, or smaller because the card leaves some out."""
        if self.n_expected is None or self.n_expressions == self.n_expected:
            return True
        return self.n_excluded > 0 and self.n_expressions < self.n_expected


@dataclass
class Check:
    """Everything that is wrong or odd in a data set, by kind.

    absent: annotation files and folders that are missing; the rest is then empty. faults: what no stage can use.
    remarks: what is used but looks odd: {remark: names}.
    """

    splits: list[SplitCheck] = field(default_factory=list)
    absent: list[Path] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    datasets: list[Dataset] = field(default_factory=list)

    @property
    def images(self) -> list[Image]:
        """The images of all splits, each file once."""
        images: dict[Path, Image] = {}
        for dataset in self.datasets:
            for image in dataset.images.values():
                if image.path not in images or image.hw is not None:
                    images[image.path] = image
        return list(images.values())


def check_dataset(card: Card, data_root: Path) -> Check:
    """Return the size of each split, in the card's order, and all that is wrong except for the content of images."""
    check = Check(absent=missing_paths(card, data_root))
    if check.absent:
        return check
    _read_splits(check, card, data_root)
    if not check.faults:
        _check_counts(check, card)
    _check_files(check, data_root / card.images, card.holes)
    in_splits = Counter(image.path for dataset in check.datasets for image in dataset.images.values())
    if shared := [path.name for path, n in in_splits.items() if n > 1]:
        check.remarks["images in several splits"] = shared
    ref_ids = Counter(ref.ref_id for dataset in check.datasets for ref in dataset.refs)
    if shared := [str(ref_id) for ref_id, n in ref_ids.items() if n > 1]:
        check.remarks["refs in several splits"] = shared
    sentences = [e.sentence for dataset in check.datasets for ref in dataset.refs for e in ref.expressions]
    if foreign := list(filter(has_other_script, dict.fromkeys(sentences))):
        check.remarks["sentences in another script than Latin, which OpenAI's CLIP does not know"] = foreign
    if repeated := [line for dataset in check.datasets for line in _find_ambiguous(dataset)]:
        check.remarks["sentences that are said of several refs of their image"] = repeated
    return check


def check_overlap(check: Check, path: Path) -> None:
    """Add to the check which images of each split a list names; RisError where the list cannot be read."""
    keys = read_image_list(path)
    for dataset in check.datasets:
        listed = find_listed(dataset, keys)
        remark = f"{len(listed):,} of {len(dataset.images):,} images of {dataset.split} are in {path.name}"
        check.remarks[remark] = listed


def _read_splits(check: Check, card: Card, data_root: Path) -> None:
    known: set[str] = set()  # faults that several splits have in common
    n_unnamed = 0
    for split in card.splits:
        try:
            reading = read_split(card, data_root, split)
        except RisError as error:
            if str(error) not in known:
                check.faults[UNREADABLE].append(Fault(str(error)))
                known.add(str(error))
            continue
        for fault in reading.faults:
            if fault.text not in known:
                check.faults[RECORDS].append(fault)
                known.add(fault.text)
        dataset = Dataset(card.name, split, reading.images, tuple(reading.refs))
        n_images, n_refs, n_expected = len(dataset.images), len(dataset.refs), card.splits[split]
        check.datasets.append(dataset)
        check.splits.append(SplitCheck(split, n_images, n_refs, dataset.n_expressions, n_expected, reading.n_excluded))
        for line in describe(card, reading):
            check.remarks[line] = []
        n_unnamed += reading.n_unnamed
    if n_unnamed:
        check.remarks[f"{n_unnamed:,} annotations on these images that no ref names"] = []


def _check_counts(check: Check, card: Card) -> None:
    """Compare the number of sentences of each split with the card's."""
    if not any(split.n_refs for split in check.splits):
        check.faults[COUNTS].append(Fault(f"{card.name} has no refs in any split of its card"))
        return
    hint = 'write the number, or "any", into the card' if card.generate else "other annotation files?"
    for split in check.splits:
        if not split.ok:
            expected = f"{split.n_expressions:,} sentences where the card expects {split.n_expected:,}"
            check.faults[COUNTS].append(Fault(f"{card.name} {split.split}: {expected}; {hint}"))


def check_contents(check: Check, folder: Path, workers: int, advance: Advance) -> None:
    """Add to the check what is wrong with the content of its images, in `folder`, and of its masks."""
    lost = [*check.faults.get(MISSING, ()), *check.faults.get(EMPTY, ())]
    known = {name for fault in lost for name in fault.names}
    images = [image for image in check.images if _name(image.path, folder) not in known]
    for image, fault, remark in _share_out(_check_images, images, workers, advance):
        if fault:
            check.faults["images that cannot be used"].append(Fault(fault, (_name(image.path, folder),)))
        if remark:
            check.remarks[remark].append(image.path.name)
    for dataset in check.datasets:
        refs = [ref for ref in dataset.refs if ref.exists and ref.has_mask and str(ref.ref_id) not in known]
        for ref_id, fault in _share_out(_check_masks, [_only(dataset, ref) for ref in refs], workers, lambda n: None):
            check.faults["masks that cannot be used"].append(Fault(fault, (str(ref_id),)))


def write_exclude(path: Path, check: Check, before: Iterable[str]) -> int:
    """Write the list of what a card leaves out: what it left out `before`, and all that cannot be used.

    Return the number of names. Faults that can only be mended are not in the list.
    """
    faults = [fault for faults in check.faults.values() for fault in faults if fault.names]
    lines = {name: name for name in sorted(before)}
    lines |= {fault.names[0]: f"{fault.names[0]}\t# {fault.text}" for fault in faults}
    with replacing(path) as file:
        file.write(("\n".join(["# Image names and ref ids that are left out.", *lines.values()]) + "\n").encode())
    return len(lines)


def has_other_script(sentence: str) -> bool:
    """Return whether the sentence has a letter that is not Latin: OpenAI's CLIP has hardly seen any."""
    return not sentence.isascii() and any(
        letter.isalpha() and not unicodedata.name(letter, "").startswith("LATIN") for letter in sentence
    )


def _find_ambiguous(dataset: Dataset) -> Iterator[str]:
    """Yield each sentence that several refs of one image share, without regard to case, and the image."""
    for image_id, refs in dataset.refs_of_image.items():
        said = Counter(
            sentence for ref in refs for sentence in {e.sentence.strip().casefold() for e in ref.expressions}
        )
        for sentence, n in said.items():
            if n > 1:
                yield f"{sentence!r} of {dataset.images[image_id].path.name}"


def _check_files(check: Check, folder: Path, holes: int) -> None:
    """Look for images and mask PNGs that are missing or empty. holes: how many of the images no source has."""
    needed: list[tuple[Path, str]] = [(image.path, _name(image.path, folder)) for image in check.images]
    for dataset in check.datasets:
        needed += [(path, str(ref.ref_id)) for ref in dataset.refs for path in ref.mask_files]
    hint = ""
    for path, name in needed:
        if not path.is_file():
            if MISSING not in check.faults and not path.is_dir() and (near := find_near(path)):
                hint = f"; there is {near}"  # once: it looks through the folder
            line = f"{path} is a folder" if path.is_dir() else f"{path} is missing"
            check.faults[MISSING].append(Fault(line + hint, (name,)))
            hint = ""
        elif not path.stat().st_size:
            check.faults[EMPTY].append(Fault(f"{path} is empty", (name,)))
    if 0 < len(check.faults.get(MISSING, ())) <= holes:
        check.remarks[f"no source has {holes} of the images: leave them out with --write-exclude"] = []


def _only(dataset: Dataset, ref: Ref) -> Dataset:
    """Return the data set with a single ref, small enough for a worker process."""
    return Dataset(dataset.name, dataset.split, {ref.image_id: dataset.images[ref.image_id]}, (ref,))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _check_images(images: Sequence[Image]) -> list[tuple[Image, str | None, str | None]]:
    found = []
    for image in images:
        fault = remark = None
        try:
            height, width = load_picture(image.path, "RGB", upright=image.upright).shape[:2]
            check_size(image, (height, width))
            remark = read_remark(image.path)
        except RisError as error:
            fault = str(error)
        if fault or remark:
            found.append((image, fault, remark and remark.partition(": ")[2]))
    return found


def _check_masks(parts: Sequence[Dataset]) -> list[tuple[int, str]]:
    faults = []
    for dataset in parts:
        for ref in dataset.refs:
            try:
                dataset.load_mask(ref)
            except RisError as error:
                faults.append((ref.ref_id, str(error)))
    return faults


def _share_out(
    check: Callable[[Sequence[Item]], list[T]], items: Sequence[Item], workers: int, advance: Advance
) -> list[T]:
    """Return what `check` finds in the items, in their order."""
    found: list[T] = []
    batches = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    with closing(map_processes(check, ((batch,) for batch in batches), workers)) as results:
        for batch, result in zip(batches, results, strict=True):
            found += result
            advance(len(batch))
    return found
