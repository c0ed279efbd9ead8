"""Data set cards: the TOML files that say how a data set is called, where it lies and what it holds."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ris_pipeline.errors import RisError, suggest_path

FORMATS = ("refer", "referit", "pairs")

# A card in ./data comes first, so that own data need no change in the package.
CARD_FOLDERS = (Path("data"), Path(__file__).resolve().parents[1] / "cards")


@dataclass(frozen=True)
class Card:
    """One data set, as its card describes it.

    annotations, images: folders, relative to the data root (or absolute). exclude: a file there, one image name or
    ref id a line, of what is left out of the data set; `ris data check --write-exclude` writes it.
    splits: the expected number of sentences of each split; None where the card says "any".
    config: per stage, what replaces the defaults of its configuration. generate: the generator's settings,
    empty for data that are downloaded. oracle: of a split, the measured scores of Step-2 trained on true masks,
    each metric's [value, low, high] in percent, to be shown where that was not trained anew.
    """

    name: str
    format: str
    annotations: Path
    images: Path
    splits: Mapping[str, int | None]
    partition: str = ""
    exclude: Path | None = None
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    generate: Mapping[str, Any] = field(default_factory=dict)
    oracle: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def check_split(self, split: str) -> None:
        """None where the card has the split.

        Raises RisError where it does not, naming those it has and the data set's other partitions that have it.
        """
        if split not in self.splits:
            others = [card.name for card in _read_cards() if card._base == self._base and split in card.splits]
            hint = f"; {' and '.join(others)} has it" if others else suggest(split, self.splits)
            raise RisError(f"{self.name} has no split {split!r}{hint}; it has {', '.join(self.splits)}")

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
    """The card of that name, or in that TOML file.

    Data set and partition may be written as they come in papers and programs: refcocog-umd, refcocog@umd,
    refcocog_umd, RefCOCOg (UMD).
    Raises RisError, naming the nearest known name or the data set's partitions, where there is none.
    """
    name = str(name_or_path)
    if name.endswith(".toml"):
        return read_card(Path(name))
    cards = _read_cards()
    for card in cards:
        if _fold(name) in map(_fold, card.aliases):
            return card
    known = ", ".join(card.name for card in cards)
    if not known:
        raise RisError(f"no cards in {CARD_FOLDERS[0].resolve()} or {CARD_FOLDERS[1]}; give a card's path (….toml)")
    base = _fold(name).partition("@")[0]
    related = [card.aliases[1] for card in cards if card.partition and _fold(card._base) == base]
    if related:
        raise RisError(f"there is no data set {name!r}; use {' or '.join(related)}")
    aliases = [alias for card in cards for alias in card.aliases]
    raise RisError(f"there is no data set {name!r}{suggest(name, aliases)}; known are {known}")


def list_cards() -> list[str]:
    """The names of all cards, sorted."""
    return [card.name for card in _read_cards()]


def read_card(path: Path) -> Card:
    """The card in the file. Raises RisError where the file is missing or does not describe a data set."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}{suggest_path(path)}") from error
    except (ValueError, RecursionError) as error:
        raise RisError(f"{path} is not valid TOML: {error}") from error
    known = [f.name for f in fields(Card)]
    for key in table:
        if key not in known:
            raise RisError(f"{path}: unknown key {key!r}{suggest(key, known)}")
    for key in ("name", "format", "annotations", "images", "partition", "exclude"):
        if not isinstance(table.setdefault(key, "" if key in ("partition", "exclude") else None), str):
            raise RisError(f"{path}: {key!r} must be given, as text")
    for key in ("splits", "config", "generate", "oracle"):
        if not isinstance(table.setdefault(key, {}), dict):
            raise RisError(f"{path}: [{key}] must be a table")
    _check_values(path, table)
    splits = {split: None if count == "any" else count for split, count in table.pop("splits").items()}
    annotations, images = Path(table.pop("annotations")), Path(table.pop("images"))
    excluded = table.pop("exclude")
    return Card(
        annotations=annotations, images=images, splits=splits, exclude=Path(excluded) if excluded else None, **table
    )


def suggest(word: str, known: Iterable[str]) -> str:
    """'; did you mean …?' with the known word nearest to the given one, or nothing where none is near."""
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _fold(name: str) -> str:
    """The name without case, with @ between data set and partition: refcocog@umd for "RefCOCOg (UMD)"."""
    return re.sub(r"[-_/@( ]+", "@", name.casefold()).removesuffix(")")


def _read_cards() -> list[Card]:
    """All cards, sorted by name; one in ./data hides the shipped one of the same name."""
    paths = {path.name: path for folder in reversed(CARD_FOLDERS) for path in folder.glob("*.toml")}
    return [read_card(path) for _, path in sorted(paths.items())]


def _check_values(path: Path, table: dict[str, Any]) -> None:
    if table["name"] != path.stem:
        raise RisError(f"{path}: the name {table['name']!r} must be the file's, {path.stem!r}")
    if table["format"] not in FORMATS:
        hint = suggest(table["format"], FORMATS)
        raise RisError(f"{path}: unknown format {table['format']!r}{hint}; known are {', '.join(FORMATS)}")
    if not table["splits"]:
        raise RisError(f"{path}: [splits] must name at least one split")
    for split, count in table["splits"].items():
        if count != "any" and (type(count) is not int or count <= 0):
            raise RisError(f'{path}: splits.{split} must be the number of sentences, or "any", not {count!r}')
    for split, scores in table["oracle"].items():
        if split not in table["splits"] or not isinstance(scores, dict):
            raise RisError(f"{path}: [oracle.{split}] must be a table of scores of a split")
        for metric, figures in scores.items():
            if not (isinstance(figures, list) and len(figures) == 3 and all(type(f) in (int, float) for f in figures)):
                raise RisError(f"{path}: oracle.{split}.{metric} must be [value, low, high] in percent")
    for stage, overrides in table["config"].items():
        if not isinstance(overrides, dict):
            raise RisError(f"{path}: [config.{stage}] must be a table")
