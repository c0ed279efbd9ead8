"""Training of IRNet (CVPR 2019, section 4) on confident labels: boundaries and displacements from pairs of pixels."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from ris_pipeline.arrays import IGNORE
from ris_pipeline.artifacts.layout import IRNET_WEIGHTS as WEIGHTS
from ris_pipeline.artifacts.layout import RESUME
from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets.io.images import load_image, normalise, resize_image
from ris_pipeline.datasets.io.labels import load_label
from ris_pipeline.datasets.records import Image
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.process.ranks import ALONE, Ranks
from ris_pipeline.refine.affinity import PathIndex
from ris_pipeline.training.irnet_losses import compute_irnet_losses, labels_on_grid
from ris_pipeline.training.loop import Report, Task, train
from ris_pipeline.training.readers import Source, read_ahead
from ris_pipeline.training.sharing import mean_over_ranks, weight_of

SCALES = (0.5, 1.5)  # random rescaling of a training image; IRNet


@dataclass(frozen=True, slots=True)
class SeedFile:
    """An image and the PNG of one of its refs' confident labels (0, 1, 255)."""

    image: Image | Path
    seed: Path


def augment(
    image: NDArray[np.uint8], seed: NDArray[np.uint8], crop: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a crop × crop cut of image and labels, rescaled and mirrored at random; IGNORE outside the image."""
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


class Cuts:
    """Batches of cuts, for `train`: the seeds in a new random order every epoch."""

    def __init__(self, files: list[SeedFile], config: PseudolabelConfig, seed: int, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.files, self.crop, self.batch_size, self.seed = files, config.irn_crop, config.irn_batch, seed
        self.n_steps = count_steps(len(files), config)
        self.steps_per_epoch = self.n_steps // config.irn_epochs

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return pixels float (B, 3, crop, crop) and labels uint8 (B, crop, crop) of a step: this rank's part."""
        pixels, labels = zip(*(self._cut(k) for k in self.ranks.part_of(self._samples_of(step))), strict=True)
        return torch.stack(pixels), torch.stack(labels)

    def describe(self, step: int) -> str:
        """Return the refs of a step, and what to lower where their loss is not finite."""
        return f"refs of the batch: {[self._file_of(k).seed.stem for k in self._samples_of(step)]}; lower irn_lr"

    def _samples_of(self, step: int) -> range:
        return range(step * self.batch_size, (step + 1) * self.batch_size)

    def _cut(self, k: int) -> tuple[Tensor, Tensor]:
        file = self._file_of(k)
        rng = np.random.default_rng([self.seed, *divmod(k, len(self.files))])
        seed = load_label(file.seed)
        # A large photograph's seeds are those of the image at the size that it is refined at.
        image = resize_image(load_image(file.image), (seed.shape[0], seed.shape[1]))
        image, seed = augment(image, seed, self.crop, rng)
        return normalise(image), torch.from_numpy(seed)

    def _file_of(self, k: int) -> SeedFile:
        epoch, i = divmod(k, len(self.files))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.files))
        return self.files[int(order[i])]


class IRNetTask(Task[tuple[Tensor, Tensor]]):
    """IRNet's losses on cuts: SGD without momentum, one rate for boundaries and one for displacements (IRNet)."""

    network: IRNet
    poly_power = 0.9  # IRNet

    def __init__(self, network: IRNet, config: PseudolabelConfig) -> None:
        super().__init__()
        self.network, self.config, self.index = network, config, PathIndex(config.radius)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return SGD on the heads; the backbone stays as it is."""
        groups = [
            {"params": self.network.boundary_parameters(), "lr": self.config.irn_lr},
            {"params": self.network.displacement_parameters(), "lr": self.config.irn_dp_lr},
        ]
        return torch.optim.SGD(groups, lr=self.config.irn_lr, weight_decay=self.config.irn_weight_decay)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the four losses and their sum, of which each kind counts half."""
        pixels, labels = (part.to(self.device, non_blocking=True) for part in batch)
        boundary_logits, displacement = self.network(pixels)
        on_grid = labels_on_grid(labels, (boundary_logits.shape[2], boundary_logits.shape[3]))
        losses = compute_irnet_losses(boundary_logits, displacement, on_grid, self.index)
        return {"loss": losses.total, **losses._asdict()}

    @torch.no_grad()
    def complete(self, source: Source[tuple[Tensor, Tensor]], workers: int) -> None:
        """Store the mean displacement over cuts of the training images."""
        n_batches = min(source.n_steps, 64)  # a mean of two numbers needs no whole pass
        device = self.device
        total = torch.zeros(2, device=device)
        with closing(read_ahead(source, range(n_batches), workers)) as batches:
            for pixels, _ in batches:
                shift = self.network(pixels.to(device))[1].mean(dim=(0, 2, 3))
                total += weight_of(len(pixels), device) * shift
        self.network.mean_shift.running_mean.copy_(mean_over_ranks(total) / n_batches)


def train_irnet(
    net: IRNet,
    files: list[SeedFile],
    config: PseudolabelConfig,
    *,
    folder: Path,
    seed: int,
    device: torch.device,
    workers: int,
    report: Report,
    ranks: Ranks = ALONE,
) -> None:
    """Train the heads in place and leave folder/WEIGHTS; where a finished training left them, load them."""
    if (folder / WEIGHTS).exists() and not (folder / RESUME).exists():  # labels that are made again, as after --repair
        net.to(device).load_state_dict(load_file(folder / WEIGHTS))
        return
    train(
        IRNetTask(net, config), Cuts(files, config, seed, ranks), folder, device=device, precision="fp32",
        workers=workers, ranks=ranks, seed=seed, report=report, weights=WEIGHTS,
    )  # fmt: skip


def count_steps(n_files: int, config: PseudolabelConfig) -> int:
    """Return the number of steps of a training on so many seeds."""
    return max(n_files // config.irn_batch, 1) * config.irn_epochs
