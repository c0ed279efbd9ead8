"""GroupViT (CVPR 2022) of transformers, for images of any size: segments, and how much each patch belongs to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.networks.clip import VOCABULARY_SIZE, Clip, find_cut
from ris_pipeline.networks.weights.extra import import_transformers
from ris_pipeline.networks.weights.tensors import copy_tensors, read_weights

STAGE_DEPTHS = (2, 1, 1)  # blocks of the three stages, for a depth of 1; GroupViT has three times as many
MLP_RATIO = 4  # of a block; GroupViT


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupVitSizes:
    """What shapes the network, in transformers' terms; GroupViT's values stand in its configuration."""

    side: int  # pixels a side that the positional table is made for
    patch: int  # pixels a side
    width: int
    heads: int
    depth: int  # blocks of the second stage and of the third; the first one has twice as many
    n_first_groups: int  # after the first stage
    n_groups: int  # after the second one
    text_width: int
    text_heads: int
    text_layers: int
    n_tokens: int
    projection: int  # hidden units of both projections
    embed_dim: int


class GroupVit(nn.Module):
    """The network; `model` is transformers' own, whose names its state dict has.

    `clip`: reads the sentences in place of the model's own text encoder, and does not learn.
    Groups are drawn at random (Gumbel) in training mode, and fixed in evaluation mode.
    """

    latin_only = True

    def __init__(self, model: Any, patch: int, clip: Clip | None = None) -> None:
        super().__init__()
        self.model = model
        self.patch = patch
        self.n_tokens = int(model.config.text_config.max_position_embeddings)
        self.clip = clip
        if clip is not None:
            if clip.embed_dim != model.config.projection_dim:
                raise RisError(
                    f"embed_dim = {model.config.projection_dim}: this CLIP's is {clip.embed_dim}; set it to that"
                )
            clip.drop_image_encoder().requires_grad_(False)
            del model.text_model, model.text_projection
            self.n_tokens = clip.n_tokens

    def train(self, mode: bool = True) -> Self:
        """Return self in training (or evaluation) mode; the projections' BatchNorm keeps its statistics in either.

        Those of a small batch would throw the gradients off: GroupViT was trained on batches of 4096.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        if self.clip is not None:
            self.clip.eval()
        return self

    def group(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return segments float (B, G, D) and how much each patch belongs to each, float (B, G, h, w).

        `pixels` float (B, 3, H, W), by ImageNet's statistics, whole patches. Over the groups a patch's shares add up
        to 1.
        """
        vision = self.model.vision_model
        patches = vision.embeddings(pixels, interpolate_pos_encoding=True)
        grouped = vision.encoder(patches, output_attentions=True, return_dict=True)
        segments: Tensor = vision.layernorm(grouped.last_hidden_state)
        first, second = grouped.attentions  # (B, G₁, hw) and (B, G, G₁), over G₁ and G adding up to 1
        shares: Tensor = second @ first
        h, w = pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        return segments, shares.view(*shares.shape[:2], h, w)

    def project(self, segments: Tensor) -> Tensor:
        """Return features float (..., E), of length 1, of segments or of their mean, float (..., D)."""
        projected: Tensor = self.model.visual_projection(segments.flatten(0, -2))  # BatchNorm1d takes rows
        return F.normalize(projected, dim=-1).view(*segments.shape[:-1], -1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return features float (N, E), of length 1, of `tokens` int64 (N, T)."""
        if self.clip is not None:
            with torch.no_grad():
                return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)
        # The text transformer is causal: what follows the last end token changes nothing.
        tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        pooled = self.model.text_model(input_ids=tokens, return_dict=True).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)

    def tokenize(self, sentences: list[str]) -> Tensor:
        """Return int64 (N, n_tokens): CLIP's tokens, which GroupViT shares; start, pieces, end, zeros."""
        if self.clip is not None:
            return self.clip.tokenize(sentences)
        tokens: Tensor = open_clip.tokenize(sentences, context_length=self.n_tokens)
        return tokens

    def find_cut(self, sentences: Sequence[str]) -> list[str]:
        """Return the sentences that `tokenize` cuts."""
        return find_cut(sentences, self.n_tokens) if self.clip is None else self.clip.find_cut(sentences)


def build_groupvit(sizes: GroupVitSizes, weights: str | None, clip: Clip | None = None) -> GroupVit:
    """Return the network of those sizes; `clip` as for `GroupVit`.

    `weights`: a tag of the Hugging Face hub ("nvidia/groupvit-gcc-yfcc"), which is downloaded, a folder in the form of
    transformers, a file of tensors with its names, or None for random values. Raises RisError where transformers is not
    installed, for weights that cannot be read, for those of a network of other sizes, and for a CLIP of another
    embedding width.
    """
    transformers = import_transformers()
    model = transformers.GroupViTModel(_configure(transformers, sizes)).eval()
    if weights is None:
        _start(model)
    elif Path(weights).is_file():
        copy_tensors(model, _drop_indices(read_weights(Path(weights)).tensors), Path(weights))
    else:
        copy_tensors(model, _load_pretrained(transformers, weights), Path(weights))
    return GroupVit(model, sizes.patch, clip)


def _configure(transformers: Any, s: GroupVitSizes) -> Any:
    depths = [n * s.depth for n in STAGE_DEPTHS]
    return transformers.GroupViTConfig(
        text_config={
            "vocab_size": VOCABULARY_SIZE, "hidden_size": s.text_width, "intermediate_size": MLP_RATIO * s.text_width,
            "num_hidden_layers": s.text_layers, "num_attention_heads": s.text_heads,
            "max_position_embeddings": s.n_tokens,
        },
        vision_config={
            "hidden_size": s.width, "intermediate_size": MLP_RATIO * s.width, "depths": depths,
            "num_hidden_layers": sum(depths), "num_attention_heads": s.heads, "image_size": s.side,
            "patch_size": s.patch, "num_group_tokens": [s.n_first_groups, s.n_groups, 0],
            "num_output_groups": [s.n_first_groups, s.n_groups, s.n_groups],
        },
        projection_dim=s.embed_dim, projection_intermediate_dim=s.projection, logit_scale_init_value=math.log(1 / 0.07),
    )  # fmt: skip


def _start(model: Any) -> None:
    """Give random values to what transformers leaves at 0: groups that start equal would stay equal."""
    vision = model.vision_model
    tokens = [stage.group_token for stage in vision.encoder.stages if stage.group_token is not None]
    for parameter in (vision.embeddings.position_embeddings, *tokens):
        nn.init.trunc_normal_(parameter, std=0.02)  # GroupViT


def _load_pretrained(transformers: Any, source: str) -> dict[str, Tensor]:
    try:
        model = transformers.GroupViTModel.from_pretrained(source, dtype=torch.float32)
    except Exception as error:  # whatever the network, the hub, the disk or the reader may raise
        reason = str(error).partition("\n")[0][:200]
        if reason.startswith("Weights only load failed"):  # torch's own words would advise to read it all the same
            reason = "its weights hold more than tensors"
        if Path(source).is_dir():
            raise RisError(f"{source}: not a GroupViT in transformers' form ({reason})") from error
        raise DownloadError(
            f"GroupViT {source} did not download ({reason}): give a local folder by groupvit.weights"
        ) from error
    tensors: dict[str, Tensor] = model.state_dict()
    return tensors


def _drop_indices(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the row numbers that older files of transformers hold."""
    return {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
