"""Reading of pickled annotations from the internet without executing anything."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ris_pipeline.datasets.io.files import check_kind, read_limited
from ris_pipeline.errors import RisError

# Objects are larger than their bytes in the file; no annotations come near this.
_BYTES_PER_BYTE = 64


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, tuples, sets, strings, bytes, numbers, booleans and None, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # Sets before protocol 4, and bytes before protocol 3, are stored as calls; nothing else plain is.
        # A new function each time: a pickle may set attributes on what it is given.
        if module == "__builtin__":  # Python 2's name, which Python 3 writes too in old protocols
            module = "builtins"
        if (module, name) == ("builtins", "set"):
            return set
        if (module, name) == ("builtins", "bytes"):
            return lambda: b""  # only empty bytes are stored so; bytes(10**12) would take all memory
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _encoding: bytes(str(text), "latin-1")
        if module.partition(".")[0] in ("collections", "numpy"):
            raise RisError(f"it holds {module}.{name}: save it again with plain dict(), list(), int(), float(), str()")
        raise RisError(f"it names {module}.{name}, which plain annotations never do; fetch it again")


def load_plain_pickle(path: Path) -> Any:
    """Return what the pickle holds, of plain containers, strings and numbers only.

    Python 2's byte strings come back as str: UTF-8, or Latin-1 where they are not UTF-8.
    Raises RisError, having executed nothing, where the file names any class or function, is larger than
    MAX_BYTES, or is no pickle.
    """
    try:
        data = read_limited(path)
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from error
    check_kind(path, data)
    if re.match(rb"\([ld]p\d+\r\n", data):  # a list or dict of protocol 0, which is text
        raise RisError(f"{path} is damaged: its line ends were converted to CRLF; fetch it again as a binary file")
    try:
        with _bounded_memory(_BYTES_PER_BYTE * len(data) + 2**28):
            try:
                return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
            except UnicodeDecodeError:
                return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except RisError as error:
        raise RisError(f"{path} is refused and nothing of it was executed: {error}") from error
    except Exception as error:  # a broken or hostile pickle can raise nearly anything
        raise RisError(f"{path} is not a readable pickle ({type(error).__name__}: {error}); fetch it again") from error


@contextmanager
def _bounded_memory(n_bytes: int) -> Iterator[None]:
    """Make it a MemoryError to allocate more than n_bytes in the block, where the system can do so.

    Ten bytes of a pickle can ask for a table of 2^31 entries, which Python fills at once.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + n_bytes
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
