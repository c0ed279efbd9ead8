"""PRMS, positive response map selection: the one map of an object that suits all its sentences (TRIS)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.networks.clip import Clip

Masking = Literal["relu", "sigmoid", "normalised"]  # what of a score grid multiplies the image; `encode_masked`


def compute_prms(features: Tensor, texts: Tensor) -> Tensor:
    """Return the PRMS scores of the K maps of one ref, float (K,): score_k = Σ_j cos(f_k, t_j).

    `features` float (K, D), CLIP's of the image seen through each map (`encode_masked`); `texts` float (K, D), CLIP's
    of the ref's K sentences. Normalised here. The ref's map is the one with the largest score.
    """
    return (F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).T).sum(dim=1)


def compute_contrast(features: Tensor, others: Tensor) -> Tensor:
    """Return the mean cosine of each of K maps with M sentences about other refs of the image, float (K,); 0 for none.

    `features` float (K, D) as of `compute_prms`, `others` float (M, D). Not in TRIS: PRMS asks what suits all sentences
    of a ref, this what suits those that mean something else.
    """
    if not len(others):
        return features.new_zeros(len(features))
    return (F.normalize(features, dim=-1) @ F.normalize(others, dim=-1).T).mean(dim=1)


def score_maps(
    grids: Tensor, pixels: Tensor, texts: Tensor, ref_ids: Tensor, aux: Clip, mask: Masking,
    image_of: Tensor | None = None, contrast: float = 0.0,
) -> Tensor:  # fmt: skip
    """Return the PRMS score of each map, float (n,), of n expressions of whole refs.

    `grids` float (n, h, w), Step-1's score grid of each expression; `pixels` float (n, 3, H, W) its image at
    Step-1's input size, or (1, 3, H, W) if all are of one image; `texts` float (n, D) its CLIP feature;
    `ref_ids` int64 (n,), where a ref must not be split between two calls. One pass of `aux`, the frozen CLIP.
    `contrast`: so much of `compute_contrast` is taken off for each sentence of the ref; `image_of` int64 (n,), whole
    images, says which refs are the others.
    """
    features = encode_masked(grids, pixels, aux, mask)
    scores = features.new_empty(len(features))
    for ref_id in torch.unique(ref_ids):
        rows = (ref_ids == ref_id).nonzero().squeeze(1)
        scores[rows] = compute_prms(features[rows], texts[rows])
        if contrast and image_of is not None:
            others = texts[(image_of == image_of[rows[0]]) & (ref_ids != ref_id)]
            scores[rows] -= contrast * len(rows) * compute_contrast(features[rows], others)
    return scores


def encode_masked(grids: Tensor, pixels: Tensor, aux: Clip, mask: Masking) -> Tensor:
    """Return float (n, D) of length 1, the features of `aux` for what a map leaves of its image.

    `grids` float (n, h, w), `pixels` float (n or 1, 3, H, W). The map M is the sigmoid of the
    upsampled grid ("sigmoid", as the calibration loss has it), their positive part, which is unbounded ("relu",
    as the released PRMS has it), or this divided by its maximum + 1e-5 ("normalised", in [0, 1]: the response map
    as it is scored). Encoded is M·I, both resized to the size that `aux` reads.
    """
    upsampled = F.interpolate(grids[:, None], pixels.shape[-2:], mode="bilinear", align_corners=False)
    M = torch.sigmoid(upsampled) if mask == "sigmoid" else F.relu(upsampled)
    if mask == "normalised":
        M = M / (M.amax(dim=(2, 3), keepdim=True) + 1e-5)
    size = (aux.image_size, aux.image_size)
    M = F.interpolate(M, size, mode="bilinear", align_corners=True)
    image = F.interpolate(pixels, size, mode="bilinear", align_corners=True)
    return F.normalize(aux.encode_image(aux.adapt(M * image)), dim=-1)
