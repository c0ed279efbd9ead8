"""TRIS's Step-1 network taught by the masks of another method (TRIS, Table 1: MaskCLIP†, CLIP-ES†).

It learns one mask for each sentence by cross-entropy; neither of Step-1's own losses takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.config import Step1Config
from ris_pipeline.datasets.io.labels import has_right_checksums
from ris_pipeline.datasets.records import Dataset, ImageGroup, group_by_image
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods.configs import SupervisedConfig
from ris_pipeline.methods.tris import Step1Responder
from ris_pipeline.networks.load import step1_from_config
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.losses import step2_loss
from ris_pipeline.training.tasks import ReferringTask


class SupervisedTask(ReferringTask):
    """The cross-entropy of each sentence's upsampled score with its target; 255 does not count."""

    network: Step1

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch that has targets."""
        batch = batch.to(self.device)
        assert batch.targets is not None
        tokens = self.network.clip.tokenize([draw.sentence for draw in batch.draws]).to(self.device)
        # Each sentence alone with its image, as it will be asked: nothing here contrasts it with the batch's others.
        V = self.network.encode_image(batch.pixels)[batch.image_of]
        S = self.network.respond_each(V, self.network.encode_text(tokens)).float()
        logits = F.interpolate(S[:, None], batch.targets.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        return {"loss": step2_loss([logits], batch.targets)}


def build(config: SupervisedConfig, weights: Path | None) -> Step1:
    """Return Step-1, of the weights in a file or with the encoders' of the configuration."""
    return step1_from_config(_as_step1(config), weights)


def build_task(network: Step1, config: SupervisedConfig) -> SupervisedTask:
    """Return the task of learning masks."""
    return SupervisedTask(network, _as_step1(config))


def plan(dataset: Dataset, config: SupervisedConfig, seed: int) -> Plan:
    """Return a plan without negatives."""
    return Plan(dataset, config.batch_size, config.refs_per_image, 0, seed)


def wrap(network: Step1, config: SupervisedConfig) -> Responder:
    """Return the trained network as a responder; its mask is where the object is the likelier, a score above 0."""
    return Step1Responder(network, config.input_size)


def _as_step1(config: SupervisedConfig) -> Step1Config:
    known = Step1Config.__dataclass_fields__
    return Step1Config(**{name: value for name, value in asdict(config).items() if name in known})


def find_missing(
    dataset: Dataset, store: ResponseStore, folder: Path, advance: Callable[[int], None]
) -> Iterator[tuple[ImageGroup, list[int], list[int]]]:
    """Yield each image with the sentences that have no whole label in `folder`: their ids, and their rows in the store.

    `advance(n)` is called with the number of sentences of each image when the next one is asked for. Raises RisError
    where the store has other sentences.
    """
    for group in group_by_image(dataset):
        sent_ids = [expression.sent_id for ref in group.refs for expression in ref.expressions]
        rows = [row for ref in group.refs for row in store.rows_of_ref(ref.ref_id)]
        if store.sent_id[rows].tolist() != sent_ids:
            raise RisError(f"{store.path}: image {group.image_id} has other sentences in the data set; dump it again")
        missing = [k for k, sent_id in enumerate(sent_ids) if not _is_whole(label_path(folder, sent_id))]
        if missing:
            yield group, [sent_ids[k] for k in missing], [rows[k] for k in missing]
        advance(len(rows))


def _is_whole(path: Path) -> bool:
    return path.exists() and has_right_checksums(path)
