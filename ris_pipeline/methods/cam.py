"""Softmax Grad-CAM of a CLIP and its refinement by class-aware attention affinity (CLIP-ES, CVPR 2023).

CLIP-ES and CaR are built on it; CaR asks again with the map marked in the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ris_pipeline.networks.dense import OpenedImage

N_SINKHORN = 3  # rounds of column and row normalisation; CLIP-ES's code


def compute_refined_cams(
    opened: OpenedImage, texts: Tensor, classes: Sequence[Sequence[int]], scale: float, box_threshold: float
) -> Tensor:
    """Return CLIP-ES's maps float (n, h, w) in [0, 1) of one image; arguments as of `compute_cams` and `refine_cam`."""
    transition = compute_transition(opened.affinity)
    cams = compute_cams(opened, texts, classes, scale)
    return torch.stack([refine_cam(cam, transition, box_threshold) for cam in cams])


def compute_cams(opened: OpenedImage, texts: Tensor, classes: Sequence[Sequence[int]], scale: float) -> Tensor:
    """Return softmax Grad-CAMs float (n, h, w) in [0, 1] of one image.

    `texts` float (C, E), of length 1; `classes[i]`: the rows of `texts` that compete for map i, its own first; `scale`:
    exp(logit_scale) of the CLIP. With w_k the mean over places of ∂p/∂A_k, the map is ReLU(Σ_k w_k A_k), min-max
    normalised. Raises ValueError for a class set of one text, whose softmax is constant.
    """
    h, w = opened.grid_hw
    places = opened.activations.detach()[0, -h * w :]  # (hw, D)
    cams = []
    for rows in classes:
        if len(rows) < 2:
            raise ValueError("one text alone has probability 1 and no gradient: add background texts")
        with torch.enable_grad():
            feature = torch.nn.functional.normalize(opened.feature, dim=-1)
            prob = (scale * feature @ texts[list(rows)].T).softmax(dim=-1)[0, 0]
        (gradient,) = torch.autograd.grad(prob, opened.activations, retain_graph=True)
        weights = gradient[0, -h * w :].mean(dim=0)
        # Twice, as released: a map whose maximum is near eps is halved by the first.
        cams.append(normalise(normalise((places @ weights).relu())).view(h, w))
    return torch.stack(cams)


def normalise(cam: Tensor, eps: float = 1e-7) -> Tensor:
    """Return (cam − min) / (max(cam − min) + eps), the same shape, in [0, 1)."""
    cam = cam - cam.min()
    return cam / (cam.max() + eps)


def compute_transition(affinity: Tensor) -> Tensor:
    """Return T float (hw, hw) of attention between places (hw, hw): Sinkhorn-normalised, symmetric, squared (§3.3)."""
    for _ in range(N_SINKHORN):
        affinity = affinity / affinity.sum(dim=0, keepdim=True)
        affinity = affinity / affinity.sum(dim=1, keepdim=True)
    symmetric = (affinity + affinity.T) / 2
    return symmetric @ symmetric


def refine_cam(cam: Tensor, transition: Tensor, box_threshold: float) -> Tensor:
    """Return the map float (h, w) in [0, 1) spread along T, from places inside the boxes around its strong regions.

    box_threshold: share of the maximum, 0.4 on VOC and 0.7 on COCO (CLIP-ES).
    """
    inside = torch.from_numpy(find_boxes(cam.cpu().numpy(), box_threshold)).to(cam)
    spread = (transition * inside.view(1, -1)) @ cam.flatten()
    return normalise(spread).view(cam.shape)


def find_boxes(cam: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Return bool (h, w): the union of the boxes around the 8-connected regions of cam > threshold · max.

    `cam` float (h, w) in [0, 1].
    """
    grey = (cam * 255).astype(np.uint8)
    strong = (grey > int(threshold * int(grey.max()))).astype(np.uint8)
    contours, _ = cv2.findContours(strong, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    inside = np.zeros(cam.shape, bool)
    for contour in contours:
        x, y, width, height = cv2.boundingRect(contour)
        # Differs from CLIP-ES: there a box never holds the grid's last row and column.
        inside[y : y + height, x : x + width] = True
    return inside
