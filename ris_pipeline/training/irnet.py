"""Training of IRNet (CVPR 2019, section 4) on confident labels: boundaries and displacements from pairs of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from ris_pipeline.artifacts.layout import IRNET_WEIGHTS as WEIGHTS
from ris_pipeline.artifacts.layout import RESUME
from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets.io.images import load_image, normalise, resize_image
from ris_pipeline.datasets.records import Image
from ris_pipeline.errors import RisError
from ris_pipeline.masks import IGNORE, load_label
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.process import signals as stops
from ris_pipeline.refine.affinity import PathIndex
from ris_pipeline.training.checkpoints import TrainingState, seed_step
from ris_pipeline.training.irnet_losses import compute_irnet_losses, labels_on_grid
from ris_pipeline.training.losses import poly_lr
from ris_pipeline.training.readers import read_ahead

SCALES = (0.5, 1.5)  # random rescaling of a training image; IRNet
POLY_POWER = 0.9


@dataclass(frozen=True, slots=True)
class SeedFile:
    """An image and the PNG of one of its refs' confident labels (0, 1, 255)."""

    image: Image | Path
    seed: Path


def augment(
    image: NDArray[np.uint8], seed: NDArray[np.uint8], crop: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop × crop cut of the image and its labels, rescaled and mirrored at random; IGNORE outside the image."""
    scale = rng.uniform(*SCALES)
    h, w = (max(round(side * scale), 1) for side in seed.shape)
    # PIL's filters, as IRNet: antialiased where they make smaller, which OpenCV's are not, and on pixel centres.
    image = np.array(PIL.Image.fromarray(image).resize((w, h), PIL.Image.Resampling.BICUBIC))
    seed = np.array(PIL.Image.fromarray(seed).resize((w, h), PIL.Image.Resampling.NEAREST))
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


class _Cuts:
    """Batches of cuts, an endless list: the seeds in a new random order every epoch."""

    def __init__(self, files: list[SeedFile], crop: int, seed: int, batch_size: int) -> None:
        self.files, self.crop, self.seed, self.batch_size = files, crop, seed, batch_size

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return pixels float (B, 3, crop, crop) and labels uint8 (B, crop, crop) of a step."""
        pixels, labels = zip(*(self._cut(k) for k in self.samples_of(step)), strict=True)
        return torch.stack(pixels), torch.stack(labels)

    def samples_of(self, step: int) -> range:
        """Return the numbers of the cuts of a step."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)

    def _cut(self, k: int) -> tuple[Tensor, Tensor]:
        file = self.file_of(k)
        rng = np.random.default_rng([self.seed, *divmod(k, len(self.files))])
        seed = load_label(file.seed)
        # A large photograph's seeds are those of the image at the size that it is refined at.
        image = resize_image(load_image(file.image), (seed.shape[0], seed.shape[1]))
        image, seed = augment(image, seed, self.crop, rng)
        return normalise(image), torch.from_numpy(seed)

    def file_of(self, k: int) -> SeedFile:
        """The file that sample k is cut from."""
        epoch, i = divmod(k, len(self.files))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.files))
        return self.files[int(order[i])]


def train_irnet(
    net: IRNet,
    files: list[SeedFile],
    config: PseudolabelConfig,
    *,
    folder: Path,
    seed: int,
    device: torch.device,
    workers: int,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train the heads in place, store the mean displacement over cuts of the training images; leave folder/WEIGHTS.

    SGD without momentum, polynomial decay, one rate for boundaries and one for displacements (IRNet). A run
    that broke off goes on at its last checkpoint; published weights, without one, are loaded. Every step is
    logged in folder/metrics.jsonl; report(step, losses) is called after it. Raises RisError at a loss that is
    not finite; the last checkpoint stays.
    """
    net.to(device)
    if (folder / WEIGHTS).exists() and not (folder / RESUME).exists():  # a repair of the labels
        net.load_state_dict(load_file(folder / WEIGHTS))
        return
    n_steps = count_steps(len(files), config)
    index = PathIndex(config.radius)
    groups = [
        {"params": net.edge_parameters(), "lr": config.irn_lr},
        {"params": net.displacement_parameters(), "lr": config.irn_dp_lr},
    ]
    base_lrs = (config.irn_lr, config.irn_dp_lr)
    optimizer = torch.optim.SGD(groups, lr=config.irn_lr, weight_decay=config.irn_weight_decay)
    cuts = _Cuts(files, config.irn_crop, seed, config.irn_batch)
    state = TrainingState(folder, {"network": net.train(), "optimizer": optimizer})
    start = state.load()
    with closing(read_ahead(cuts, range(start, n_steps), workers)) as batches, stops.deferred():
        for step, (pixels, labels) in zip(range(start, n_steps), batches, strict=True):
            seed_step(seed, step)
            for group, base in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = base * poly_lr(step, n_steps, POLY_POWER)
            edge_logits, displacement = net(pixels.to(device))
            on_grid = labels_on_grid(labels.to(device), (edge_logits.shape[2], edge_logits.shape[3]))
            losses = compute_irnet_losses(edge_logits, displacement, on_grid, index)
            if not torch.isfinite(losses.total):
                names = [cuts.file_of(k).seed.stem for k in cuts.samples_of(step)]
                raise RisError(f"IRNet, step {step}: the loss is not finite; refs of the batch: {names}; lower irn_lr")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(losses.total)
            optimizer.step()
            values = {name: value.item() for name, value in losses._asdict().items()}
            report(step, values)
            state.step_done(**values)
    if not state.is_finished:
        # A mean of two numbers needs no whole pass.
        with closing(read_ahead(cuts, range(min(n_steps, 64)), workers)) as first:
            _store_mean_displacement(net.eval(), first, device)
    state.finish(folder / WEIGHTS, net.state_dict())


def count_steps(n_files: int, config: PseudolabelConfig) -> int:
    """The number of steps of a training on so many seeds."""
    return max(n_files // config.irn_batch, 1) * config.irn_epochs


@torch.no_grad()
def _store_mean_displacement(net: IRNet, batches: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> None:
    total, n_batches = torch.zeros(2, device=device), 0
    for pixels, _ in batches:
        total += net(pixels.to(device))[1].mean(dim=(0, 2, 3))
        n_batches += 1
    net.mean_shift.running_mean.copy_(total / n_batches)
