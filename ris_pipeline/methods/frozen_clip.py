"""What the training-free methods have in common: a CLIP as it was published, asked for sentences beside other texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.maps.rule import Rule
from ris_pipeline.methods.configs import FrozenClipConfig
from ris_pipeline.networks.dense import find_grid
from ris_pipeline.networks.weights.clip_weights import load_clip


class FrozenClip:
    """The part of a responder that does not depend on how it makes its maps."""

    rule: Rule

    def __init__(self, config: FrozenClipConfig, device: torch.device) -> None:
        """Load the CLIP and encode the background; RisError where either cannot be done, and for an unfit size."""
        clip = load_clip(config.clip, config.clip_weights, n_tokens=None).requires_grad_(False).eval()
        self.clip = clip.to(device).to(memory_format=torch.channels_last)
        self.input_size, self.template = config.input_size, config.template
        self.grid_hw = find_grid(self.clip, (config.input_size, config.input_size))
        self.scale = float(self.clip.model.logit_scale.exp())
        self.background = self.encode_phrases([word.strip() for word in config.background.split(",")], self.template)

    @property
    def device(self) -> torch.device:
        """The CLIP's."""
        return next(self.clip.parameters()).device

    @property
    def n_tokens(self) -> int:
        """Tokens of a sentence that the CLIP reads: its whole context, of which the template takes some."""
        return self.clip.n_tokens

    @property
    def latin_only(self) -> bool:
        """Whether the CLIP's tokenizer knows hardly a script but Latin."""
        return self.clip.latin_only

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that have more tokens than the CLIP reads, in the template."""
        cut = set(self.clip.find_cut([self.template.format(sentence) for sentence in sentences]))
        return [sentence for sentence in sentences if self.template.format(sentence) in cut]

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return float (N, E), of length 1, of the sentences in the template."""
        return self.encode_phrases(sentences, self.template)

    @torch.no_grad()
    def encode_phrases(self, phrases: Sequence[str], template: str) -> Tensor:
        """Return float (N, E), of length 1, of the phrases in a template."""
        tokens = self.clip.tokenize([template.format(phrase) for phrase in phrases]).to(self.device)
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)

    def list_classes(self, texts: Tensor, rivals: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
        """Return the texts float (n, E) with the background below them, and which rows compete for each of the n.

        Its own row comes first; `rivals` are the rows of other sentences.
        """
        classes = torch.cat([texts, self.background])
        background = range(len(texts), len(classes))
        return classes, [[own, *others, *background] for own, others in enumerate(rivals)]


def find_rivals(texts: Tensor, ref_ids: Sequence[int] | None) -> list[list[int]]:
    """Return for each of the n encoded sentences float (n, …) the rows of those that compete with it.

    They are about other objects; without `ref_ids` there are none. Two objects may be called the same: a sentence never
    competes with itself.
    """
    if ref_ids is None:
        return [[] for _ in texts]
    return [
        [row for row, text in enumerate(texts) if ref_ids[row] != ref_id and not torch.equal(text, own)]
        for own, ref_id in zip(texts, ref_ids, strict=True)
    ]
