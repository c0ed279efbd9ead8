"""The exception that a user is meant to see, and the hints that it ends with where a word or a path is mistyped."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class RisError(Exception):
    """Something the user can mend: one line that says which file or record, what is wrong and what to do.

    Control characters are shown, not sent to the terminal: names and values come from files of others.
    """

    def __init__(self, text: str) -> None:
        super().__init__(_CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text))


class DownloadError(RisError):
    """Weights that are neither on this machine nor could be fetched."""


class BusyError(RisError):
    """An artifact that another process is writing."""


class MadeMeanwhileError(RisError):
    """An artifact that was found missing, and that another process has finished since."""


class EmptySplitError(RisError):
    """A split of the card of which the data hold nothing."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean …?' with the known word nearest to `word`, or all known words where none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def suggest_path(path: Path) -> str:
    """Return '; did you mean …?' with the existing path nearest to a missing one, or nothing where none is near."""
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), None)
    if missing is None or not missing.parent.is_dir():
        return ""
    near = difflib.get_close_matches(missing.name, [sibling.name for sibling in missing.parent.iterdir()], n=1)
    if not near:
        return ""
    found = missing.with_name(near[0])
    whole = found / path.relative_to(missing)
    return f"; did you mean {whole if whole.exists() else found}?"
