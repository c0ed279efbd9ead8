"""Reading of pickled annotations from the internet without executing anything that they name."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from ris_pipeline.errors import RisError

# Several times the annotation files of the known data sets; it bounds what a hostile file can take.
MAX_BYTES = 2**28


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, tuples, sets, strings, bytes, numbers, booleans and None, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # Sets before protocol 4, and bytes before protocol 3, are stored as calls; nothing else plain is.
        # The functions are made anew each time: a pickle may set attributes on what it is given.
        if module == "__builtin__":  # Python 2's name, which Python 3 writes too in old protocols
            module = "builtins"
        if (module, name) == ("builtins", "set"):
            return set
        if (module, name) == ("builtins", "bytes"):
            return lambda: b""  # only empty bytes are stored so; bytes(10**12) would take all memory
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _encoding: bytes(str(text), "latin-1")
        raise RisError(f"it names {module}.{name}, which plain annotations never do")


def load_plain_pickle(path: Path) -> Any:
    """What the pickle holds, of plain containers, strings and numbers only.

    Python 2's byte strings come back as str: UTF-8, or Latin-1 where they are not UTF-8.
    Raises RisError, having executed nothing, where the file names any class or function, is larger than
    MAX_BYTES, or is no pickle.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RisError(f"{path} is larger than {MAX_BYTES >> 20} MiB; no known annotation file is")
        data = path.read_bytes()
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from error
    try:
        try:
            return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except RisError as error:
        raise RisError(f"{path} is refused and nothing of it was executed: {error}; fetch it anew") from error
    except Exception as error:  # a broken or hostile pickle can raise nearly anything
        raise RisError(f"{path} is not a readable pickle ({type(error).__name__}: {error}); fetch it anew") from error
