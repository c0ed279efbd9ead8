"""Data set cards: the TOML files that say what a data set is called, where it is and what it holds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from ris_pipeline.config import explain_invalid
from ris_pipeline.errors import RisError, did_you_mean, suggest_path

SentenceCount = Annotated[
    Annotated[int, Field(gt=0, strict=True)] | None,
    BeforeValidator(lambda count: None if count == "any" else count),
]

# A card in ./data comes first, so that own data need no change in the package.
CARD_FOLDERS = (Path("data"), Path(__file__).resolve().parents[1] / "cards")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Download:
    """A file that `ris data fetch` gets, from the first of its sources that has it."""

    holds: Literal["annotations", "images"]
    file: Annotated[str, Field(pattern=r"^[^/\\]+$")]  # its name
    into: Path  # folder below the data root
    sources: Annotated[tuple[Annotated[str, Field(pattern="^https?://")], ...], Field(min_length=1)]
    take: str = ""  # of a zip archive: the pattern of the files that are unpacked, each by its own name; "": no archive
    n_bytes: int | None = None  # None: not known
    digest: Annotated[str, Field(pattern="^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|)$")] = ""  # "": not known


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Card:
    """One data set, as its card describes it. Folders and files are below the data root, or absolute."""

    name: str  # that of the card's file
    format: Literal[
        "refer", "grefcoco", "refzom", "rrsisd", "parquet", "phrasecut", "reasonseg", "flickr30k", "referit", "pairs"
    ]
    annotations: Path  # folder of the annotation files
    images: Path  # folder of the images
    splits: Annotated[Mapping[str, SentenceCount], Field(min_length=1)]  # {split: expected sentences, None for "any"}
    partition: str = ""  # of the refs among images, where there are several: refs(<partition>).p
    exclude: Path | None = None  # file of image names and ref ids that are left out, one a line
    note: str = ""  # what is odd about the data; printed when they are read
    licence: str = ""  # of the annotations, and of the images where it is another; "": not looked up
    holes: int = 0  # images that no source has
    fetch: tuple[Download, ...] = ()  # files that can be downloaded
    hub: str = ""  # owner/name of the data set of the Hugging Face hub whose files are the annotations
    raw_orientation: bool = False  # of pairs: read photographs as stored, not turned as EXIF says
    # Where a person finds the annotations, if no plain address gives them.
    pages: tuple[Annotated[str, Field(pattern="^https?://")], ...] = ()
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # {stage: values in place of its defaults}
    generate: Mapping[str, Any] = field(default_factory=dict)  # settings of the generator; empty for other data
    # {split: {metric: (value, low, high)}} in percent, of a Step-2 on true masks; shown until one is trained.
    oracle: Mapping[str, Mapping[str, tuple[float, float, float]]] = field(default_factory=dict)

    def check_split(self, split: str) -> None:
        """Raise RisError if the card lacks the split, naming those it has, or other partitions that have it."""
        if split not in self.splits:
            others = [card.name for card in list_cards() if card._base == self._base and split in card.splits]
            hint = f"{' and '.join(others)} has it" if others else f"known: {', '.join(self.splits)}"
            raise RisError(f"{self.name} has no split {split!r}; {hint}")

    @property
    def is_by_hand(self) -> bool:
        """Whether only a person can fetch the annotations, from one of the pages."""
        return bool(self.pages) and not self.hub and all(item.holds == "images" for item in self.fetch)

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names under which the card is found: its own, and data set and partition, as in refcoco@unc."""
        if not self.partition:
            return (self.name,)
        return self.name, f"{self._base}@{self.partition}", f"{self._base}-{self.partition}"

    @property
    def _base(self) -> str:
        return self.name.removesuffix(f"-{self.partition}")


def load_card(name_or_path: str | Path) -> Card:
    """Return the card of that name, or in that TOML file.

    Data set and partition may be written as in papers and programs: refcocog-umd, refcocog@umd, refcocog_umd,
    RefCOCOg (UMD). Raises RisError, naming the nearest known name or the data set's partitions, where there is none.
    """
    name = str(name_or_path)
    if name.endswith(".toml"):
        return read_card(Path(name))
    cards = list_cards()
    for card in cards:
        if _fold(name) in map(_fold, card.aliases):
            return card
    if not cards:
        raise RisError(f"no cards in {CARD_FOLDERS[0].resolve()} or {CARD_FOLDERS[1]}; give a card's path (….toml)")
    base = _fold(name).partition("@")[0]
    related = [
        f"{card.aliases[1]} ({', '.join(f'{split} {n:,}' for split, n in card.splits.items() if n)} sentences)"
        for card in cards
        if card.partition and _fold(card._base) == base
    ]
    if related:
        raise RisError(f"there is no data set {name!r}; use {' or '.join(related)}")
    raise RisError(f"there is no data set {name!r}{did_you_mean(name, [card.name for card in cards])}")


def read_card(path: Path) -> Card:
    """Return the card in the file. Raises RisError where the file is missing or does not describe a data set."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}{suggest_path(path)}") from error
    except (ValueError, RecursionError) as error:
        raise RisError(f"{path} is not valid TOML: {error}") from error
    try:
        card = Card(**table)
    except ValidationError as error:
        raise RisError(f"{path}: {explain_invalid(error, Card)}") from error
    if card.name != path.stem:
        raise RisError(f"{path}: the name {card.name!r} must be the file's, {path.stem!r}")
    for split in card.oracle:
        if split not in card.splits:
            raise RisError(f"{path}: [oracle.{split}] names no split{did_you_mean(split, card.splits)}")
    return card


def _fold(name: str) -> str:
    """Return the name without case, with @ between data set and partition: refcocog@umd for "RefCOCOg (UMD)"."""
    return re.sub(r"[-_/@( ]+", "@", name.casefold()).removesuffix(")")


def list_cards() -> list[Card]:
    """Return all cards, sorted by name; a card in ./data hides the shipped card of the same name."""
    paths = {path.name: path for folder in reversed(CARD_FOLDERS) for path in folder.glob("*.toml")}
    return [read_card(path) for _, path in sorted(paths.items())]
