"""The library of an extra: compared methods whose networks or texts come from transformers need it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ris_pipeline.errors import RisError


def import_transformers() -> Any:
    """Return the module transformers; RisError, naming what to install, where it is not there."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise RisError("this method needs an extra: pip install -c constraints.txt -e '.[methods]'") from error
