"""Scores of a network in training, on the first refs of a split."""

from __future__ import annotations

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import Responder
from ris_pipeline.scoring.evaluate import evaluate_network
from ris_pipeline.scoring.metrics import summarise

_NEEDS = {"last": "boxes or masks", "pointit": "boxes", "miou": "masks"}


def take_refs(dataset: Dataset, n: int, select: str) -> Dataset:
    """Return the data set with its first n refs, or all for 0, on which a training is to be validated.

    Raises RisError where they have no ground truth for `select`: boxes for pointit, masks for miou, either for last.
    """
    chosen = dataset.first_refs(n)
    has_boxes = any(ref.boxes_xyxy for ref in chosen.refs)
    has_masks = any(ref.has_mask for ref in chosen.refs)
    if not {"last": has_boxes or has_masks, "pointit": has_boxes, "miou": has_masks}[select]:
        raise RisError(
            f"{dataset.name} {dataset.split}: no {_NEEDS[select]} to validate on with select = {select!r}; "
            "add them or leave validate empty"
        )
    return chosen


def validate(responder: Responder, dataset: Dataset, batch_size: int) -> dict[str, float]:
    """Return pointit and miou in percent, as `ris score` would; one alone where there are only boxes or only masks.

    `batch_size` images are encoded at once; it changes the speed only.
    """
    estimates = summarise(list(evaluate_network(dataset, responder, batch_size)), n_bootstrap=1)
    return {name: estimates[name].value for name in ("pointit", "miou") if name in estimates}
