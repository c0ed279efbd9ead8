"""Downloads that go on where they broke off, and that count only when all bytes are there."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

from ris_pipeline.errors import DownloadError
from ris_pipeline.process.console import Console
from ris_pipeline.process.failures import explain_failure
from ris_pipeline.process.units import format_size

_CHUNK = 2**20  # bytes
_TIMEOUT = 60  # seconds without a byte


class _RefusedError(Exception):
    """An answer that is not the file, and would not be it the next time either."""


def download(
    sources: Sequence[str], file: Path, console: Console, *, n_bytes: int | None = None, digest: str = ""
) -> None:
    """Fetch `file` from the first of the addresses that gives it whole.

    What has come is kept beside the file as `<name>.<tag>.part`, and both the next try and the next call go on there.
    n_bytes, digest ("sha256:…" or "md5:…"): of the right file, where they are known. Raises DownloadError, naming each
    address and what was wrong with it.
    """
    faults, is_begun = [], False
    for source in sources:
        # Halves from two addresses make one file only where a digest will tell.
        tag = digest.rpartition(":")[2] or hashlib.sha256(source.encode()).hexdigest()
        part = file.with_name(f"{file.name}.{tag[:8]}.part")
        has_moved = True
        while has_moved:
            before = _size_of(part)
            try:
                _transfer(source, part, n_bytes, console)
                if fault := find_fault(part, n_bytes, digest):
                    part.unlink()
                    raise OSError(f"it sent {fault}")
                part.replace(file)
                return
            except _RefusedError as error:
                fault, has_moved = str(error), False
            except (OSError, HTTPException, ValueError) as error:
                if explain_failure(error):  # of this machine: a full disk, a folder that is not writable
                    raise
                fault = str(error) or type(error).__name__
                # A file that was put together from two halves may be right when it comes in one piece.
                has_moved = _size_of(part) > before or (before > 0 and not part.exists())
        faults.append(f"{source}: {fault}")
        is_begun = is_begun or part.exists()
    hint = "; what has come is kept, and the same command goes on there" if is_begun else ""
    raise DownloadError(f"{file.name} did not download ({'; '.join(faults)}){hint}")


def find_fault(path: Path, n_bytes: int | None, digest: str) -> str | None:
    """Return what is wrong with a file of which size or digest, as of `download`, are known; None if nothing is."""
    if n_bytes is not None and _size_of(path) != n_bytes:
        return f"{_size_of(path):,} bytes, not {n_bytes:,}"
    algorithm, _, expected = digest.partition(":")
    if expected:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != expected:
            return f"other bytes: {algorithm} {found}, not {expected}"
    return None


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(source: str, part: Path, n_bytes: int | None, console: Console) -> None:
    """Append to `part` what the source has beyond it, or write it anew where the source only gives the whole.

    Raises _RefusedError for an answer that is no part of the file, OSError or HTTPException where it breaks off.
    """
    done = _size_of(part)
    if done and done == n_bytes:
        return
    headers = {"User-Agent": "ris", "Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(source, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # as long as the file or longer, but not it
        raise
    with answer:
        start, total = _place(answer, done)
        chunk = answer.read(_CHUNK)
        if answer.headers.get_content_type() == "text/html" or (not start and chunk.lstrip().startswith(b"<")):
            raise _RefusedError("it is a web page, not the file")
        if n_bytes is not None and total not in (None, n_bytes):
            raise _RefusedError(f"it has {total:,} bytes, not {n_bytes:,}")
        size = n_bytes or total
        if size is None:
            raise _RefusedError("it does not say how large it is")
        console.say(f"{'going on with' if start else 'fetching'} {format_size(size)} from {source}")
        with part.open("ab" if start else "wb") as copy, console.progress(part.stem, size, start) as advance:
            while chunk:
                if copy.tell() + len(chunk) > size:
                    raise _RefusedError(f"it sends more than {size:,} bytes")
                copy.write(chunk)
                advance(len(chunk))
                chunk = answer.read(_CHUNK)
            copy.flush()
            os.fsync(copy.fileno())
    if _size_of(part) < size:
        raise OSError(f"{_size_of(part):,} of {size:,} bytes came")


def _place(answer: HTTPResponse, done: int) -> tuple[int, int | None]:
    """Return at which byte of the file the answer begins, and how many the file has by it, None if it does not say."""
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != done:
            raise _RefusedError("it gives another part of the file than it was asked for")
        return done, int(found[2])
    length = answer.headers.get("Content-Length")
    return 0, None if length is None else int(length)
