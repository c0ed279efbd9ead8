"""CLIP as the method uses it: four image levels without pooling, a 20-token text transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from ris_pipeline.config import N_TOKENS
from ris_pipeline.datasets.io.images import renormalise
from ris_pipeline.errors import RisError
from ris_pipeline.networks.parts.pooling import attention_pool

_LONGEST = 77  # tokens that are looked at to see whether a sentence is cut: CLIP's own context
VOCABULARY_SIZE = 49408  # CLIP's BPE: 49,406 pieces, start and end of text


class Clip(nn.Module):
    """An open_clip model behind the calls that the pipeline needs.

    `model` is the open_clip model itself; its state dict has OpenAI's names.
    The first `n_tokens` rows of the positional table are used, whatever the context length; None: all.
    `mean`, `std`: of the RGB in [0, 1] that the model was trained on; OpenAI's unless given.

    Raises RisError where the model has another kind of text encoder, or a context shorter than `n_tokens`.
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        n_tokens: int | None = N_TOKENS,
        last_stride: int = 32,
        mean: Sequence[float] = OPENAI_DATASET_MEAN,
        std: Sequence[float] = OPENAI_DATASET_STD,
    ) -> None:
        super().__init__()
        _check_supported(model, n_tokens)
        self.model = model
        self.mean, self.std = tuple(mean), tuple(std)
        self.last_stride = last_stride
        if last_stride == 16:
            self._keep_last_resolution()
        elif last_stride != 32:
            raise RisError(f"last_stride must be 16 or 32, not {last_stride}")
        self.n_tokens = int(self.model.context_length if n_tokens is None else n_tokens)
        self.word_width = int(self.model.token_embedding.embedding_dim)
        self.embed_dim = int(self.model.text_projection.shape[1])
        size = self.model.visual.image_size
        self.image_size = int(size if isinstance(size, int) else size[0])

    @classmethod
    def from_config(cls, config: Mapping[str, Any], n_tokens: int | None = N_TOKENS, **settings: Any) -> Clip:
        """Return a Clip with random values, by open_clip's embed_dim, vision_cfg, text_cfg and quick_gelu.

        `settings`: the others of a Clip.
        Raises RisError for a configuration of another format, or one of another kind of text encoder.
        """
        if "hf_model_name" in config.get("text_cfg", {}):
            raise RisError("this CLIP's text encoder comes from Hugging Face, not from CLIP: take another model")
        try:
            model = open_clip.CLIP(**config)
        except TypeError as error:
            raise RisError(f"not a CLIP configuration in open_clip's format: {error}") from error
        return cls(model, n_tokens, **settings)

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        """Channels of c1..c4. Raises RisError for a ViT, which has no such levels."""
        last_convolutions = [stage[-1].conv3 for stage in self._stages()]
        c1, c2, c3, c4 = (int(conv.out_channels) for conv in last_convolutions)
        return c1, c2, c3, c4

    def levels(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c1..c4 of `pixels` float (B, 3, H, W): float (B, C_i, H/s, W/s) at strides s = 4, 8, 16, 32.

        Any input size; the attention pooling does not run. Raises RisError for a ViT.
        """
        # Differs from TRIS: the released model also runs the attention pooling and throws its result away.
        layer1, layer2, layer3, layer4 = self._stages()
        c1 = layer1(self.model.visual.stem(pixels))
        c2 = layer2(c1)
        c3 = layer3(c2)
        return c1, c2, c3, layer4(c3)

    def grid_side(self, side: int) -> int:
        """Return the cells along a side of c4 for images of `side` pixels: the pools round down, the first layer up."""
        return -(-side // 2) // (self.last_stride // 2)

    def words(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return words float (N, T, word_width) after the last LayerNorm, and sentence float (N, embed_dim).

        `tokens` int64 (N, T), T at most the model's context. The sentence is the end token's word through the
        text projection, not normalised. What follows the end token in a row of `words` is padding.
        """
        n_texts, length = tokens.shape
        x = self.model.token_embedding(tokens) + self.model.positional_embedding[:length]
        x = self.model.transformer(x, attn_mask=self.model.attn_mask[:length, :length])
        words = self.model.ln_final(x)
        end = tokens.argmax(dim=-1)  # the end token has the largest id of all
        sentence = words[torch.arange(n_texts, device=tokens.device), end] @ self.model.text_projection
        return words, sentence

    def renormalise(self, pixels: Tensor) -> Tensor:
        """Return pixels float (…, 3, H, W), normalised by ImageNet's statistics, as this CLIP was trained on them.

        TRIS leaves that out: its networks read ImageNet's.
        """
        return renormalise(pixels, self.mean, self.std)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the pooled feature float (B, embed_dim), not normalised, of `pixels` float (B, 3, S, S).

        A ResNet's pooling reads any S, its positional table resized where S is not `image_size`.
        Raises RisError for a ViT where it is not.
        """
        if self.is_resnet:
            return attention_pool(self.model.visual.attnpool, self.levels(pixels)[3])
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            height, width = pixels.shape[-2:]
            raise RisError(f"this CLIP reads {self.image_size} px squares, not {height}×{width}: resize first")
        return cast(Tensor, self.model.encode_image(pixels))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the sentence feature float (N, embed_dim), not normalised, of `tokens` int64 (N, T)."""
        # The text transformer is causal: what follows the last end token changes nothing.
        return self.words(tokens[:, : int(tokens.argmax(dim=-1).max()) + 1])[1]

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Return int64 (N, n_tokens): start, BPE pieces, end token (which a cut keeps), zeros."""
        # Differs from TRIS: there a row of 77 was cut at 20, and a long sentence lost its end token.
        return cast(Tensor, open_clip.tokenize(list(sentences), context_length=self.n_tokens))

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that `tokenize` cuts."""
        return find_cut(sentences, self.n_tokens)

    def drop_image_encoder(self) -> Self:
        """Return self without image encoder and scale of the comparison, for a network that reads sentences only."""
        del self.model.visual, self.model.logit_scale
        return self

    @property
    def is_resnet(self) -> bool:
        """Whether the image encoder is a ResNet, which has levels, rather than a ViT."""
        return hasattr(self.model.visual, "layer4")

    def _keep_last_resolution(self) -> None:
        """Take the pooling out of layer4, where a ModifiedResNet has its stride, and dilate its convolutions.

        Dilated by two, they reach as far in the picture as they did at half the resolution.
        """
        layer4 = self._stages()[3]
        layer4[0].avgpool = nn.Identity()
        layer4[0].downsample[0] = nn.Identity()
        for block in layer4:
            block.conv2.dilation = block.conv2.padding = (2, 2)

    def _stages(self) -> tuple[Any, Any, Any, Any]:
        visual = self.model.visual
        if not self.is_resnet:
            raise RisError("this CLIP's ViT has no c1..c4: take one with a ResNet (RN50, RN101)")
        return visual.layer1, visual.layer2, visual.layer3, visual.layer4


def encode_each(encode: Callable[[list[str]], Tensor], sentences: Sequence[str]) -> Tensor:
    """Return `encode` (N different sentences → float (N, …)) of the sentences, float (n, …), each encoded once."""
    number_of = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
    return encode(list(number_of))[[number_of[sentence] for sentence in sentences]]


def find_cut(sentences: Sequence[str], n_tokens: int) -> list[str]:
    """Return those of the sentences whose tokens, start and end included, are more than `n_tokens`: cut at the end.

    A sentence of another script takes many tokens: seven Chinese characters fill twenty.
    """
    # A token is a byte at least: most sentences are too short to be looked at.
    long = [sentence for sentence in sentences if len(sentence.encode("utf-8", "replace")) > n_tokens - 2]
    if not long:
        return []
    # The end token has the largest id of all; padding is 0, which is also an exclamation mark.
    counts = open_clip.tokenize(long, context_length=_LONGEST).argmax(dim=1) + 1
    return [sentence for sentence, n in zip(long, counts.tolist(), strict=True) if n > n_tokens]


def _check_supported(model: Any, n_tokens: int | None) -> None:
    if not isinstance(model, open_clip.CLIP) or model.text_pool_type != "argmax" or model.attn_mask is None:
        raise RisError("this CLIP's text encoder is not OpenAI's causal one: take another model")
    if model.vocab_size != VOCABULARY_SIZE:
        raise RisError(f"this CLIP has {model.vocab_size} tokens, not the {VOCABULARY_SIZE} of CLIP's BPE")
    if n_tokens is not None and not 2 <= n_tokens <= model.context_length:
        raise RisError(f"n_tokens must be 2 to {model.context_length}, this CLIP's context, not {n_tokens}")
