"""The methods that answer a sentence with a map: TRIS, and those that it is compared with, a file each.

A compared method is one module with a function `load(config, device) -> Responder`, and one line in METHODS. Its
responses have its name in their flags; from there on it is dumped, scored and shown like Step-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ris_pipeline.errors import RisError, did_you_mean

if TYPE_CHECKING:
    import torch

    from ris_pipeline.maps.respond import Responder


@dataclass(frozen=True, slots=True)
class Method:
    """A compared method, described without importing it."""

    name: str  # in flags, in the score table and as the column of the gallery
    title: str  # as the paper's tables have it
    module: str  # where its `load` is
    config: type[Any]  # a frozen dataclass; a card's [config.<name>] changes its values
    code_version: int  # raise it with every change after which its responses would be others

    @property
    def version(self) -> str:
        """Its name and the version of its code, as its responses keep it."""
        return f"{self.name}@{self.code_version}"

    def load(self, config: Any, device: torch.device) -> Responder:
        """Return its responder on a device."""
        responder: Responder = import_module(self.module).load(config, device)
        return responder


METHODS: dict[str, Method] = {}


def find_method(name: str) -> Method:
    """Return the method of that name; RisError, naming the nearest, for an unknown one."""
    if name not in METHODS:
        raise RisError(f"there is no method {name!r}{did_you_mean(name, METHODS)}")
    return METHODS[name]
