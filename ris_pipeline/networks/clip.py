"""A CLIP as the method uses it: four image levels without pooling, and a text transformer's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Self, cast

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import Transformer, VisionTransformer, text_global_pool
from torch import Tensor, nn

from ris_pipeline.config import N_TOKENS
from ris_pipeline.datasets.io.images import renormalise
from ris_pipeline.errors import RisError
from ris_pipeline.networks import vit
from ris_pipeline.networks.parts.levels import (
    Levels,
    copy_grid,
    resize,
    timm_channels,
    timm_grid_side,
    timm_levels,
    whole_patches,
)
from ris_pipeline.networks.parts.pooling import attention_pool

_LONGEST = 77  # tokens that are looked at to see whether a sentence is cut: CLIP's own context
VOCABULARY_SIZE = 49408  # CLIP's BPE: 49,406 pieces, start and end of text


class Clip(nn.Module):
    """An open_clip model behind the calls that the pipeline needs.

    `model` is the open_clip model itself; its state dict has OpenAI's names.
    The first `n_tokens` rows of the positional table are used, whatever the context length; None: all. A text encoder
    that reads its padding (SigLIP's, MobileCLIP's) always gets its whole context, as in its own training.
    `mean`, `std`: of the RGB in [0, 1] that the model was trained on; OpenAI's unless given.
    `tokenizer`: open_clip's for the model, where it is not CLIP's BPE, which knows hardly a script but Latin.

    Raises RisError where the text encoder is none of open_clip's own, or has a context shorter than `n_tokens`.
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        n_tokens: int | None = N_TOKENS,
        last_stride: int = 32,
        mean: Sequence[float] = OPENAI_DATASET_MEAN,
        std: Sequence[float] = OPENAI_DATASET_STD,
        tokenizer: HFTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.latin_only = tokenizer is None
        self.mean, self.std = tuple(mean), tuple(std)
        self.last_stride = last_stride
        self.reads_padding = _reads_padding(model)
        self.n_tokens = self._fit_tokens(n_tokens)
        if last_stride == 16:
            self._keep_last_resolution()
        elif last_stride != 32:
            raise RisError(f"last_stride must be 16 or 32, not {last_stride}")
        text, projection = _text_of(model), _text_of(model).text_projection
        self.word_width = int(text.token_embedding.embedding_dim)
        self.embed_dim = int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])
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
        if "multimodal_cfg" in config:
            raise RisError("CoCa's text encoder is not read: take another model")
        is_custom = bool(config.get("custom_text"))
        build = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
        try:
            model = build(**{key: value for key, value in config.items() if key != "custom_text"})
        except TypeError as error:
            raise RisError(f"not a CLIP configuration in open_clip's format: {error}") from error
        return cls(model, n_tokens, **settings)

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        """Channels of c1..c4."""
        visual = self.model.visual
        if isinstance(visual, TimmModel):
            return timm_channels(visual.trunk)
        if not self.is_resnet:
            width = int(visual.conv1.out_channels)
            return width, width, width, width
        last_convolutions = [stage[-1].conv3 for stage in self._stages()]
        c1, c2, c3, c4 = (int(conv.out_channels) for conv in last_convolutions)
        return c1, c2, c3, c4

    def levels(self, pixels: Tensor) -> Levels:
        """Return c1..c4 of `pixels` float (B, 3, H, W): float (B, C_i, H/s, W/s) at strides s = 4, 8, 16, 32.

        Any input size; the pooling does not run. Of a ViT c4 is the grid of its patches, and c1..c3 are copies of it
        (`copy_grid`). Raises RisError for a ViT without class token.
        """
        visual = self.model.visual
        if isinstance(visual, TimmModel):
            return timm_levels(visual.trunk, self.adapt(pixels))
        if not self.is_resnet:
            return self._vit_levels(pixels)
        # Differs from TRIS: the released model also runs the attention pooling and throws its result away.
        layer1, layer2, layer3, layer4 = self._stages()
        c1 = layer1(visual.stem(pixels))
        c2 = layer2(c1)
        c3 = layer3(c2)
        return c1, c2, c3, layer4(c3)

    def _vit_levels(self, pixels: Tensor) -> Levels:
        visual = self.model.visual
        vit.check_vit(visual)
        height, width = pixels.shape[-2:]
        (patch, _), hw = visual.patch_size, (height, width)
        seen = resize(pixels, (whole_patches(height, patch), whole_patches(width, patch)))
        tokens = visual.ln_post(visual.transformer(vit.embed(visual, seen, "bicubic")))[:, 1:]
        grid = tokens.transpose(1, 2).unflatten(2, vit.grid_of(visual, (seen.shape[2], seen.shape[3])))
        return copy_grid(grid, hw)

    def grid_side(self, side: int) -> int:
        """Return the cells along a side of c4 for images of `side` pixels."""
        visual = self.model.visual
        if isinstance(visual, TimmModel):
            return timm_grid_side(visual.trunk, side)
        if not self.is_resnet:
            return whole_patches(side, visual.patch_size[0]) // int(visual.patch_size[0])
        # The pools round down, the first layer up.
        return -(-side // 2) // (self.last_stride // 2)

    def words(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return words float (N, T, word_width) after the last LayerNorm, and sentence float (N, embed_dim).

        `tokens` int64 (N, T), T at most the model's context. The sentence is the end token's word, or where the model
        has it, through the text projection, not normalised. What follows the end token in `words` is padding.
        """
        text = _text_of(self.model)
        length = tokens.shape[1]
        x = text.token_embedding(tokens) + text.positional_embedding[:length]
        x = text.transformer(x, attn_mask=None if text.attn_mask is None else text.attn_mask[:length, :length])
        words = text.ln_final(x)
        pooled = text_global_pool(words, tokens, _pool_type(self.model), eos_token_id=_eos_of(self.model))
        return words, self.project(pooled)

    def project(self, words: Tensor) -> Tensor:
        """Return words float (…, word_width) in the space shared with images, float (…, embed_dim), not normalised."""
        projection = _text_of(self.model).text_projection
        projected: Tensor = projection(words) if isinstance(projection, nn.Linear) else words @ projection
        return projected

    def adapt(self, pixels: Tensor) -> Tensor:
        """Return pixels float (…, 3, H, W), normalised by ImageNet's statistics, as the image encoder is to read them.

        OpenAI's ResNets and ViTs read them so, as in TRIS; other families by the statistics of their own training.
        """
        return pixels if _is_openais_kind(self.model) else self.renormalise(pixels)

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
        """Return the sentence feature float (N, embed_dim), not normalised, of `tokens` int64 (N, T).

        The tokens may lie on a processor while the network is on a device: to look at them there is to wait for it.
        """
        if not self.reads_padding:
            # The text transformer is causal: what follows the last end token changes nothing.
            tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        return self.words(tokens.to(_text_of(self.model).positional_embedding.device))[1]

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Return int64 (N, n_tokens): start, pieces, end token (which a cut keeps), padding, as the model has them."""
        if self.tokenizer is not None:
            return cast(Tensor, self.tokenizer(list(sentences), context_length=self.n_tokens))
        # Differs from TRIS: there a row of 77 was cut at 20, and a long sentence lost its end token.
        rows = b"".join(_tokenize(sentence, self.n_tokens) for sentence in sentences)
        return torch.from_numpy(np.frombuffer(rows, np.int32).reshape(len(sentences), self.n_tokens).astype(np.int64))

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that `tokenize` cuts."""
        if self.tokenizer is not None:
            pieces = self.tokenizer.tokenizer(list(map(self.tokenizer.clean_fn, sentences))).input_ids
            return [sentence for sentence, ids in zip(sentences, pieces, strict=True) if len(ids) > self.n_tokens]
        return find_cut(sentences, self.n_tokens)

    def put_positions_first(self) -> None:
        """Let the transformers work on (T, N, width) inside, with the same values.

        torch's attention turns (N, T, width) into that without moving anything, and multiplies what is not contiguous
        by a frozen weight position by position: in bfloat16 on a CPU with a copy of the weight for each of them.
        """
        for transformer in self.modules():
            if isinstance(transformer, Transformer):
                blocks = [block.attn for block in transformer.resblocks]
                if all(isinstance(attention, nn.MultiheadAttention) for attention in blocks):
                    transformer.batch_first = False
                    for attention in blocks:
                        attention.batch_first = False

    def drop_image_encoder(self) -> Self:
        """Return self without image encoder and scale of the comparison, for a network that reads sentences only."""
        del self.model.visual, self.model.logit_scale
        return self

    @property
    def is_resnet(self) -> bool:
        """Whether the image encoder is a ResNet, which has levels, rather than a ViT."""
        return hasattr(self.model.visual, "layer4")

    def _fit_tokens(self, n_tokens: int | None) -> int:
        """Return how many tokens are read. Raises RisError where the text encoder or its vocabulary is no CLIP's."""
        context = int(self.model.context_length)
        if self.tokenizer is None and self.model.vocab_size != VOCABULARY_SIZE:
            size = self.model.vocab_size
            raise RisError(f"this CLIP has {size} tokens, not the {VOCABULARY_SIZE} of CLIP's BPE, and no tokenizer")
        if n_tokens is None or self.reads_padding:
            return context
        if not 2 <= n_tokens <= context:
            raise RisError(f"n_tokens must be 2 to {context}, this CLIP's context, not {n_tokens}")
        return n_tokens

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
            raise RisError("this CLIP's image encoder is no ResNet: take RN50 or RN101")
        return visual.layer1, visual.layer2, visual.layer3, visual.layer4


@lru_cache(maxsize=2**17)  # 50 MB at most; RefCOCO has 120,624 sentences to learn from
def _tokenize(sentence: str, n_tokens: int) -> bytes:
    """Return a sentence's CLIP tokens, int32 (n_tokens,).

    Cleaning and splitting a text takes 0.1 ms, and a step of Step-1 asks for five texts a ref.
    """
    return bytes(open_clip.tokenize([sentence], context_length=n_tokens).numpy().astype(np.int32))


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


def _text_of(model: Any) -> Any:
    """Return the module that has the text encoder's parts: the CLIP itself, or its `text`."""
    return model.text if isinstance(model, open_clip.CustomTextCLIP) else model


def _pool_type(model: Any) -> str:
    return str(model.text.pool_type if isinstance(model, open_clip.CustomTextCLIP) else model.text_pool_type)


def _eos_of(model: Any) -> int | None:
    text = _text_of(model)
    return getattr(text, "eos_id", getattr(text, "text_eos_id", None))


def _reads_padding(model: Any) -> bool:
    """Whether what follows the end token changes the sentence. Raises RisError for a text encoder of another kind."""
    text = _text_of(model)
    parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    if any(getattr(text, part, None) is None for part in parts) or getattr(text, "cls_emb", None) is not None:
        raise RisError("this CLIP's text encoder is none of open_clip's own: take another model")
    return text.attn_mask is None or _pool_type(model) not in ("argmax", "eos")


def _is_openais_kind(model: Any) -> bool:
    return isinstance(model, open_clip.CLIP) and isinstance(model.visual, ModifiedResNet | VisionTransformer)
