"""What responders of a trained network have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ris_pipeline.maps.rule import Rule


class TextEncoder(Protocol):
    """The text encoder of a network."""

    n_tokens: int
    latin_only: bool

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that have more tokens than it reads."""


class NetworkResponder:
    """A network that reads squares of input_size, and sentences by `text_encoder`; its answers are the subclass's."""

    rule: Rule
    network: Any

    def __init__(self, network: torch.nn.Module, text_encoder: TextEncoder, input_size: int) -> None:
        self.network, self.text_encoder, self.input_size = network, text_encoder, input_size

    @property
    def device(self) -> torch.device:
        """The network's."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def n_tokens(self) -> int:
        """Tokens of a sentence that it reads."""
        return self.text_encoder.n_tokens

    @property
    def latin_only(self) -> bool:
        """Whether its tokenizer knows hardly a script but Latin."""
        return self.text_encoder.latin_only

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that have more tokens than it reads."""
        return self.text_encoder.find_cut(sentences)
