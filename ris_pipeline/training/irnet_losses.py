"""Losses of IRNet (CVPR 2019, section 4.3) from confident labels: pairs of pixels, alike or not."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ris_pipeline.arrays import BACKGROUND, FOREGROUND, IGNORE
from ris_pipeline.refine.affinity import PathIndex
from ris_pipeline.training.sharing import mean_over_ranks


class IRNetLosses(NamedTuple):
    """The four terms, scalars; a term without pairs is 0."""

    alike: Tensor  # boundaries between pixels of one label, background and foreground half each
    different: Tensor  # no boundary between pixels of two labels
    foreground_displacement: Tensor
    background_displacement: Tensor

    @property
    def total(self) -> Tensor:
        """(alike + different) / 2 + (foreground + background displacement) / 2."""
        return sum(self, start=torch.zeros_like(self.alike)) / 2


def labels_on_grid(labels: Tensor, hw: tuple[int, int]) -> Tensor:
    """Return uint8 labels (B, H, W) on the grid, (B, *hw): of each cell the pixel at its centre."""
    return F.interpolate(labels[:, None], hw, mode="nearest-exact")[:, 0]


def compute_irnet_losses(
    boundary_logits: Tensor, displacement: Tensor, labels: Tensor, index: PathIndex
) -> IRNetLosses:
    """Return the losses of boundary logits (B, 1, h, w) and displacements (B, 2, h, w).

    `labels` is uint8 (B, h, w) on the same grid: 0 background, 1 foreground, 255 ignored. `index` holds the
    pairs (IRNet: radius 10). With a = 1 − the largest boundary on the path: −ln(a + 1e-5) where the labels
    are alike, −ln(1 + 1e-5 − a) where they differ. The displacements of two foreground pixels must differ
    by the offset between them, those of two background pixels not at all (L1).
    """
    # Differs from TRIS: all pairs inside the crop count, not only those whose first pixel is `radius` away
    # from the left, right and lower border: on a small grid that would be most of it.
    here = labels[:, None]
    there = _partners(labels[:, None], index, outside=IGNORE)[:, 0]
    valid = (here != IGNORE) & (there != IGNORE)
    both_background = (valid & (here == BACKGROUND) & (there == BACKGROUND)).float()
    both_foreground = (valid & (here == FOREGROUND) & (there == FOREGROUND)).float()
    differ = (valid & (here != there)).float()

    affinity = _affinity(torch.sigmoid(boundary_logits.float())[:, 0], index)
    alike_loss = -torch.log(affinity + 1e-5)
    differ_loss = -torch.log(1 + 1e-5 - affinity)

    offsets = torch.as_tensor(index.offsets.T, dtype=torch.float32, device=labels.device)[:, :, None, None]
    field = displacement.float()
    difference = field[:, :, None] - _partners(field, index, outside=0)  # (B, 2, P, h, w)
    return IRNetLosses(
        alike=(_mean(alike_loss, both_background) + _mean(alike_loss, both_foreground)) / 2,
        different=_mean(differ_loss, differ),
        foreground_displacement=_mean((difference - offsets).abs().mean(dim=1), both_foreground),
        background_displacement=_mean(difference.abs().mean(dim=1), both_background),
    )


def _mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of `loss` where `weight` is 1 in the batch of all processes, 0 where it never is."""
    return (loss * weight).sum() / (mean_over_ranks(weight.sum()) + 1e-5)


def _partners(maps: Tensor, index: PathIndex, outside: float) -> Tensor:
    """Return each pixel's partner for each pair offset, (B, C, P, h, w), of maps (B, C, h, w)."""
    height, width = maps.shape[-2:]
    margin = index.margin
    padded = F.pad(maps, (margin, margin, 0, margin), value=outside)
    return torch.stack(
        [padded[..., dy : dy + height, margin + dx : margin + dx + width] for dy, dx in index.offsets.tolist()],
        dim=2,
    )


def _affinity(boundary: Tensor, index: PathIndex) -> Tensor:
    """Return 1 − the largest boundary on each pair's path, (B, P, h, w), of boundaries (B, h, w)."""
    height, width = boundary.shape[-2:]
    margin = index.margin
    padded = F.pad(boundary, (margin, margin, 0, margin), value=1.0)
    strongest = []
    for path in index.paths:
        on_path = [padded[:, dy : dy + height, margin + dx : margin + dx + width] for dy, dx in path.tolist()]
        strongest.append(torch.stack(on_path).max(dim=0).values)
    return 1 - torch.stack(strongest, dim=1)
