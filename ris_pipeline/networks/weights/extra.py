"""The library of two extras: compared methods whose networks or texts come from transformers need it, and SAM."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ris_pipeline.errors import RisError


def import_transformers(extra: str = "methods") -> Any:
    """Return the module transformers; RisError, naming the extra to install, where it is not there."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise RisError(f"this needs transformers, an extra: pip install -c constraints.txt -e '.[{extra}]'") from error
