"""The losses of Step-1 and Step-2 (TRIS, ICCV 2023), and the contrastive ones of image and sentence.

TRIS's take float32 scores and clamp in float32, in which 0.9999 is not 1. Under automatic mixed precision the features
that the frozen CLIP gives the calibration loss are of the lower precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.arrays import FOREGROUND, IGNORE
from ris_pipeline.maps.select import encode_masked
from ris_pipeline.networks.clip import Clip
from ris_pipeline.training.sharing import mean_over_ranks, weight_of

COSINE_MIN, COSINE_MAX = 1e-4, 0.9999  # the released code's limits of the cosine under the logarithm


def classification_loss(S: Tensor, targets: Tensor) -> Tensor:
    """Return the classification loss, a float scalar ≥ 0: how wrong S is on which texts are about which image.

    `S` float (B, N, h, w); `targets` bool or float (B, N), 1 where text j is about image i; several texts may
    be about one image.

        logit = mean_hw S + max_hw S + (1 − m)³·ln(0.01 + m),   m = mean_hw of the softmax over N texts and
                                                                a background that is 1 everywhere
    and the multi-label soft margin (logistic) loss of logit against targets.
    """
    background = torch.ones_like(S[:, :1])
    M = torch.softmax(torch.cat([background, S], dim=1), dim=1)[:, 1:]
    m = M.flatten(2).mean(-1)
    scores = S.flatten(2)
    logits = scores.mean(-1) + scores.max(-1).values + (1 - m) ** 3 * torch.log(0.01 + m)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def calibration_loss(
    S_diag: Tensor, pixels: Tensor, aux: Clip, positive: Tensor, negative: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (L_pos, L_neg), float scalars: what the map keeps of the image is like its own text only.

    `S_diag` float (n, h, w), the score of each image with its own text; `pixels` float (n, 3, H, W);
    `aux` the frozen CLIP (ViT-B/32 in the paper); `positive` float (n, D) and `negative` float (n, k, D) its
    features of the own text and of k = 3 sentences about other objects, normalised here.

        L_pos = mean −ln clamp(cos(f, t), 1e-4, 0.9999),   L_neg = mean −ln(1 − cos(f, n)),
        f = aux.encode_image(a·I),   a = sigmoid of S_diag, not ReLU'd, at the size of the image
    """
    features = encode_masked(S_diag, pixels, aux, "sigmoid")  # (n, D), of length 1
    cos_positive = (features * F.normalize(positive, dim=-1)).sum(-1)
    cos_negative = (features[:, None] * F.normalize(negative, dim=-1)).sum(-1)
    loss_positive = -cos_positive.clamp(COSINE_MIN, COSINE_MAX).log().mean()
    # Differs from TRIS: without an upper limit there, L_neg is infinite where the cosine rounds to 1.
    loss_negative = -torch.log(1 - cos_negative.clamp(max=COSINE_MAX)).mean()
    return loss_positive, loss_negative


def overlap_loss(S_diag: Tensor, image_of: Tensor) -> Tensor:
    """Return how much the maps of different refs of one image overlap, a float scalar in [0, 1]; not in TRIS.

    `S_diag` float (n, h, w) as of `calibration_loss`; `image_of` int64 (n,), the image of each. The mean over the pairs
    of one image of Σ min(m_i, m_j) / Σ max(m_i, m_j), with m the positive part of S divided by its maximum; 0 without
    pairs.
    """
    maps = F.relu(S_diag).flatten(1)
    maps = maps / (maps.amax(dim=1, keepdim=True) + 1e-5)
    i, j = torch.triu_indices(len(maps), len(maps), 1, device=maps.device)
    i, j = i[image_of[i] == image_of[j]], j[image_of[i] == image_of[j]]
    shared, covered = torch.minimum(maps[i], maps[j]).sum(1), torch.maximum(maps[i], maps[j]).sum(1)
    return weight_of(len(i), maps.device) * (shared / (covered + 1e-5)).sum() / max(len(i), 1)


def step2_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the sum over the heads of the mean binary cross-entropy, a float scalar ≥ 0.

    `logits` of each head float (B, H, W); `labels` uint8 (B, H, W): 0 background, 1 foreground, 255 ignored.
    The means are over the pixels that are not ignored, of the batch of all processes; 0 where all are.
    """
    counted = labels != IGNORE
    n_counted = mean_over_ranks(counted.sum()).clamp(min=1)
    targets = (labels == FOREGROUND).to(logits[0].dtype)
    losses = [
        (F.binary_cross_entropy_with_logits(head, targets, reduction="none") * counted).sum() / n_counted
        for head in logits
    ]
    return torch.stack(losses).sum()


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, captions: list[str]) -> Tensor:
    """Return the symmetric InfoNCE, a float scalar, of features float (B, D) of length 1.

    Pairs with the same caption are not each other's negatives.
    """
    return matching_loss(scale * image @ text.T, captions)


def matching_loss(logits: Tensor, captions: Sequence[str]) -> Tensor:
    """Return the cross-entropy of logits float (B, B), image by caption, the mean of both directions, a float scalar.

    Pairs with the same caption are not each other's negatives.
    """
    same = find_equal(captions) & ~torch.eye(len(captions), dtype=torch.bool)
    logits = logits.masked_fill(same.to(logits.device), -math.inf)
    target = torch.arange(len(captions), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def find_equal(captions: Sequence[str]) -> Tensor:
    """Return bool (N, N): whether two captions are the same."""
    ids = {caption: i for i, caption in enumerate(captions)}
    key = torch.tensor([ids[caption] for caption in captions])
    return key[:, None] == key[None, :]
