"""What a frozen text encoder says of each word of a sentence, and of the whole: BERT's, or CLIP's."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ris_pipeline.config import N_TOKENS
from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.weights.extra import import_transformers

_LETTERS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    *(start + letter for start in ("", "##") for letter in string.ascii_lowercase + string.digits),
)  # fmt: skip


class WordEncoder(nn.Module):
    """A text encoder whose word pieces and sentence share a space of `width` dimensions."""

    width: int
    n_tokens: int  # of a sentence that it reads, start and end included
    latin_only = True  # whether the tokenizer knows hardly a script but Latin

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """Return float (N, 1 + T, width): each sentence, its word pieces, and zeros up to those T of the longest."""
        raise NotImplementedError

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that have more tokens than it reads."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device


class BertWordEncoder(WordEncoder):
    """BERT's last hidden states; the sentence is the mean of its word pieces, without start and end (GbS)."""

    def __init__(self, bert: nn.Module, tokenizer: Any, n_tokens: int) -> None:
        super().__init__()
        self.bert, self.tokenizer, self.n_tokens = bert, tokenizer, n_tokens
        self.width = int(bert.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """Return the sentences and their word pieces, float (N, 1 + T, width)."""
        tokens = self.tokenizer(
            list(sentences), padding=True, truncation=True, max_length=self.n_tokens, return_tensors="pt"
        ).to(self.device)
        states = self.bert(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        n_pieces = tokens.attention_mask.sum(dim=1) - 2  # without start and end
        words = _keep_first(states[:, 1:-1], n_pieces)
        mean = words.sum(dim=1) / n_pieces.clamp(min=1)[:, None]
        return torch.cat([mean[:, None], words], dim=1)

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that have more tokens than n_tokens."""
        lengths = [len(ids) for ids in self.tokenizer(list(sentences)).input_ids]
        return [sentence for sentence, n in zip(sentences, lengths, strict=True) if n > self.n_tokens]


class ClipWordEncoder(WordEncoder):
    """The states of CLIP's text transformer in the space shared with images; the sentence is its end token's."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        if clip.reads_padding:
            raise RisError("this CLIP's text encoder has no words without padding: take one of OpenAI's kind")
        self.clip = clip.drop_image_encoder()
        self.width, self.n_tokens = clip.embed_dim, clip.n_tokens

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """Return the sentences and their word pieces, float (N, 1 + T, width)."""
        tokens = self.clip.tokenize(sentences).to(self.device)
        end = tokens.argmax(dim=1)  # the end token has the largest id of all
        words, sentence = self.clip.words(tokens[:, : int(end.max()) + 1])
        words = self.clip.project(words)
        return torch.cat([sentence[:, None], _keep_first(words[:, 1:-1], end - 1)], dim=1)

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that have more tokens than CLIP reads."""
        return self.clip.find_cut(sentences)


def build_bert(weights: str | None, *, is_trained: bool) -> BertWordEncoder:
    """Return BERT in transformers' format by its name, from a folder, or, for None, of BERT-base's size at random.

    `is_trained`: its weights come from a checkpoint anyway. A vocabulary comes with weights; without them words are
    spelt. Raises RisError where a part of it is not there.
    """
    transformers = import_transformers()
    try:
        if weights is None:
            tokenizer = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(_LETTERS)})
            bert = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
            if is_trained:
                bert = transformers.BertModel(transformers.BertConfig.from_pretrained(weights), add_pooling_layer=False)
            else:  # a file of tensors alone: torch's own format could execute code
                bert = transformers.BertModel.from_pretrained(weights, add_pooling_layer=False, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{weights}: no BERT of that name or in that folder ({error}); give a local folder by bert_weights"
        ) from error
    return BertWordEncoder(bert, tokenizer, N_TOKENS)  # as many as CLIP reads


def _keep_first(words: Tensor, n: Tensor) -> Tensor:
    """Return words float (N, T, D), zeros from the n-th of each row on."""
    places = torch.arange(words.shape[1], device=words.device)
    return words * (places[None] < n[:, None])[..., None]
