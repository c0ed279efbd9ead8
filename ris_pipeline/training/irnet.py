"""Training of IRNet (CVPR 2019, section 4) on confident labels: boundaries and displacements from pairs of pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets.images import load_image, normalise
from ris_pipeline.masks import IGNORE, load_label
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.refine.affinity import PathIndex
from ris_pipeline.training.batches import read_loader
from ris_pipeline.training.irnet_losses import compute_irnet_losses, labels_on_grid
from ris_pipeline.training.losses import poly_lr

SCALES = (0.5, 1.5)  # random rescaling of a training image; IRNet
POLY_POWER = 0.9


@dataclass(frozen=True, slots=True)
class SeedFile:
    """An image and the PNG of one of its refs' confident labels (0, 1, 255)."""

    image: Path
    seed: Path


def augment(
    image: NDArray[np.uint8], seed: NDArray[np.uint8], crop: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop × crop cut of the image and its labels, rescaled and mirrored at random; IGNORE outside the image."""
    scale = rng.uniform(*SCALES)
    h, w = (max(round(side * scale), 1) for side in seed.shape)
    image = cv2.resize(image, (w, h), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    seed = cv2.resize(seed, (w, h), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    if rng.random() < 0.5:
        image, seed = image[:, ::-1], seed[:, ::-1]
    # A side longer than the crop is cut, a shorter one is placed anywhere in it.
    y, x = (int(rng.integers(min(0, crop - side), max(0, crop - side) + 1)) for side in (h, w))
    cut_image = np.full((crop, crop, 3), (124, 116, 104), np.uint8)
    cut_seed = np.full((crop, crop), IGNORE, np.uint8)
    target = slice(max(y, 0), min(y + h, crop)), slice(max(x, 0), min(x + w, crop))
    source = (
        slice(target[0].start - y, target[0].stop - y),
        slice(target[1].start - x, target[1].stop - x),
    )
    cut_image[target], cut_seed[target] = image[source], seed[source]
    return cut_image, cut_seed


class _Cuts(TorchDataset[tuple[Tensor, Tensor]]):
    """Sample k of an endless list: the seeds in a new random order every epoch."""

    def __init__(self, files: list[SeedFile], crop: int, seed: int) -> None:
        self.files, self.crop, self.seed = files, crop, seed

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        epoch, i = divmod(k, len(self.files))
        file = self.files[np.random.default_rng([self.seed, epoch]).permutation(len(self.files))[i]]
        rng = np.random.default_rng([self.seed, epoch, i])
        image, seed = augment(load_image(file.image), load_label(file.seed), self.crop, rng)
        return normalise(image), torch.from_numpy(seed)


def train_irnet(
    net: IRNet,
    files: list[SeedFile],
    config: PseudolabelConfig,
    *,
    seed: int,
    device: torch.device,
    workers: int,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train the heads in place, then store the mean displacement over the same cuts of the training images.

    SGD without momentum, polynomial decay, one rate for boundaries and one for displacements (IRNet).
    report(step, losses) is called after every step.
    """
    n_steps = max(len(files) // config.irn_batch, 1) * config.irn_epochs
    index = PathIndex(config.radius)
    groups = [
        {"params": net.edge_parameters(), "lr": config.irn_lr},
        {"params": net.displacement_parameters(), "lr": config.irn_dp_lr},
    ]
    base_lrs = (config.irn_lr, config.irn_dp_lr)
    optimizer = torch.optim.SGD(groups, lr=config.irn_lr, weight_decay=config.irn_weight_decay)
    net.to(device).train()
    cuts = _Cuts(files, config.irn_crop, seed)
    loader = DataLoader(cuts, config.irn_batch, sampler=range(n_steps * config.irn_batch), num_workers=workers)
    for step, (pixels, labels) in enumerate(read_loader(loader)):
        for group, base in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = base * poly_lr(step, n_steps, POLY_POWER)
        edge_logits, displacement = net(pixels.to(device))
        on_grid = labels_on_grid(labels.to(device), (edge_logits.shape[2], edge_logits.shape[3]))
        losses = compute_irnet_losses(edge_logits, displacement, on_grid, index)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.total)
        optimizer.step()
        report(step, {name: value.item() for name, value in losses._asdict().items()})
    _store_mean_displacement(net.eval(), loader, device)


@torch.no_grad()
def _store_mean_displacement(net: IRNet, loader: DataLoader[tuple[Tensor, Tensor]], device: torch.device) -> None:
    total, n_batches = torch.zeros(2, device=device), 0
    for pixels, _ in read_loader(loader):
        total += net(pixels.to(device))[1].mean(dim=(0, 2, 3))
        n_batches += 1
        if n_batches == 64:  # a mean of two numbers needs no whole pass
            break
    net.mean_shift.running_mean.copy_(total / n_batches)
