"""PointIt, PointM, mIoU, oIoU, Prec@X, box scores, N-acc, T-acc, mRR and rIoU: counts per expression, percentages.

Conventions. Arrays are indexed (y, x); boxes are xyxy floats in pixels, with x2 = x1 + width.
An empty prediction of what is there has IoU 0. For a sentence about nothing in the image the rules are gRefCOCO's
(GRES, CVPR 2023): an empty prediction has IoU 1 and adds nothing to oIoU, any other has IoU 0 and adds its pixels to
the union; PointIt, PointM, Prec@X and boxes leave the sentence out. N-acc is the share of these sentences with an
empty prediction, T-acc the share of the others with one that is not.
mRR and rIoU are R-RefCOCO's (IEEE TIP 2024; utils/validation.py of github.com/jianzongwu/robust-ref-seg), whose refs
also have sentences that are wrong: means over refs, of the share of the wrong sentences with an empty prediction, and
of all intersections over all unions, to which a prediction for a wrong sentence adds its pixels. There these are pixels
of the network's output; here they are the image's, as everywhere.
Prec@X and box@X count IoU ≥ X. What a map's mask is, the caller says; TRIS takes map > 1e-9 in Step-1 and
logit > 0 in Step-2.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ris_pipeline.arrays import BoolMask, Box
from ris_pipeline.datasets.io.segmentations import extent_of
from ris_pipeline.datasets.records import ABSENT
from ris_pipeline.errors import RisError, did_you_mean
from ris_pipeline.scoring.intervals import Floats, compute_replicates, percentile_interval

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
BOX_THRESHOLD = 0.5
_NEEDS = {
    "pointit": "boxes",
    "pointm": "masks",
    "miou": "masks",
    "oiou": "masks",
    **{f"prec@{threshold}": "masks" for threshold in PRECISION_THRESHOLDS},
    "box_iou": "boxes",
    f"box@{BOX_THRESHOLD}": "boxes",
    "n_acc": "sentences about nothing in their image",
    "t_acc": "sentences about nothing in their image",
    "mrr": "refs that also have sentences that are wrong",
    "riou": "refs that also have sentences that are wrong",
}
METRICS = tuple(_NEEDS)
# What a table shows where all are asked for.
HEADLINE = ("pointit", "pointm", "miou", "oiou", "prec@0.5", "n_acc", "t_acc", "mrr", "riou")
_ALIASES = {
    "ciou": "oiou", "overall_iou": "oiou", "cumulative_iou": "oiou", "giou": "miou", "mean_iou": "miou",
    "point_it": "pointit", "point_m": "pointm", "boxiou": "box_iou", "box_acc": f"box@{BOX_THRESHOLD}",
    "nacc": "n_acc", "tacc": "t_acc",
}  # fmt: skip
_GENERALISED = re.compile(r"(box_?)?(generali[sz]ed_?)(box_?)?iou|box_?giou|giou_?box")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one map scored. None: the dataset has no ground truth for it.

    `weight`: the number of sentences that the map stands for; 1, or with PRMS (one map per ref) the ref's
    number of sentences. `exists`: whether they mean anything in the image.
    """

    ref_id: int
    sent_id: int
    weight: int
    point_it: bool | None
    point_m: bool | None
    intersection: int | None  # pixels
    union: int | None  # pixels
    box_iou: float | None  # 0..1
    is_empty: bool = field(default=False, compare=False)  # nothing was found: a mask without a pixel
    exists: bool = True

    @property
    def iou(self) -> float | None:
        """I/U in 0..1; where both masks are empty 1 if there is nothing to find, else 0; None without a mask."""
        if self.intersection is None or self.union is None:
            return None
        return self.intersection / self.union if self.union else float(not self.exists)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score in percent with its 95 % interval, and what it was counted on."""

    value: float
    ci_low: float
    ci_high: float
    n_refs: int
    n_expressions: int


def point_of(response: npt.NDArray[np.floating]) -> tuple[int, int]:
    """Return (y, x) of the largest value of a map (H, W); of equal ones, the first in row-major order.

    A map that is equal everywhere, such as an empty response, points at the corner (0, 0), and is scored so.
    """
    y, x = np.unravel_index(np.argmax(response), response.shape)
    return int(y), int(x)


def point_in_box(point: tuple[int, int], box_xyxy: Box) -> bool:
    """Return x1 ≤ x ≤ x2 and y1 ≤ y ≤ y2 for a point (y, x): the borders count as inside."""
    y, x = point
    x1, y1, x2, y2 = box_xyxy
    return x1 <= x <= x2 and y1 <= y <= y2


def intersection_union(prediction: BoolMask, target: BoolMask) -> tuple[int, int]:
    """Return the number of pixels in both and in either of two bool masks (H, W)."""
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))


def box_area(box_xyxy: Box) -> float:
    """Return width × height in pixels, 0 for a box turned inside out."""
    x1, y1, x2, y2 = box_xyxy
    return max(0.0, x2 - x1) * max(0.0, y2 - y1)


def box_iou(a_xyxy: Box, b_xyxy: Box) -> float:
    """Return the intersection over the union of two boxes, 0..1; 0 where both have no area.

    >>> from ris_pipeline.scoring.metrics import box_iou
    >>> box_iou((0, 0, 10, 10), (0, 5, 10, 10))
    0.5
    """
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a_xyxy, b_xyxy
    overlap = box_area((max(ax1, bx1), max(ay1, by1), min(ax2, bx2), min(ay2, by2)))
    union = box_area(a_xyxy) + box_area(b_xyxy) - overlap
    return overlap / union if union > 0 else 0.0


def score_expression(
    *,
    ref_id: int,
    sent_id: int,
    response: npt.NDArray[np.floating],
    prediction: BoolMask,
    boxes_xyxy: Sequence[Box],
    edges_xyxy: Box | None,
    mask: BoolMask | None,
    ignored: BoolMask | None = None,
    exists: bool = True,
) -> Outcome:
    """Return the outcome of a response map (H, W) and the mask made from it (H, W) against the ground truth.

    `response` gives the point, `prediction` the IoUs and the predicted box. `boxes_xyxy` are the boxes as annotated, in
    one of which the point has to lie; `edges_xyxy` is the box around them with x2 and y2 one past its last pixel, for
    the IoU of boxes. `ignored`: pixels that are taken out of both masks. `exists`: whether the sentence means anything
    in the image. A ground truth of None, or no boxes, gives outcomes of None. Raises RisError for a NaN in the map and
    for a ground-truth mask of another size.
    """
    if np.isnan(response).any():
        raise RisError(f"ref {ref_id}, sentence {sent_id}: the response map holds NaN; dump the responses again")
    if mask is not None and mask.shape != prediction.shape:
        raise RisError(
            f"ref {ref_id}: the ground-truth mask is {mask.shape}, its image {prediction.shape} (H, W); "
            "mend the annotation or the image"
        )
    if ignored is not None:
        prediction = prediction & ~ignored
        mask = None if mask is None else mask & ~ignored
    point = point_of(response)
    intersection, union = (None, None) if mask is None else intersection_union(prediction, mask)
    predicted_box = extent_of(prediction)
    overlap = box_iou(predicted_box, edges_xyxy) if predicted_box and edges_xyxy else 0.0
    return Outcome(
        ref_id=ref_id,
        sent_id=sent_id,
        weight=1,
        point_it=any(point_in_box(point, box) for box in boxes_xyxy) if boxes_xyxy else None,
        point_m=None if mask is None or not exists else bool(mask[point]),
        intersection=intersection,
        union=union,
        box_iou=None if edges_xyxy is None else overlap,
        is_empty=predicted_box is None,
        exists=exists,
    )


def _terms(outcomes: Sequence[Outcome]) -> tuple[Floats, Floats]:
    """Return numerators and denominators of METRICS, float64 (len(outcomes), M); NaN: no ground truth."""

    def column(values: Sequence[float | None]) -> Floats:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def reaches(iou: Floats, threshold: float) -> Floats:
        return np.where(np.isnan(iou), np.nan, iou >= threshold)

    iou = column([o.iou for o in outcomes])
    boxes = column([o.box_iou for o in outcomes])
    exists = np.array([o.exists for o in outcomes])
    is_empty = column([o.is_empty for o in outcomes])
    weight = np.array([o.weight for o in outcomes], dtype=np.float64)
    ref_ids = np.array([o.ref_id for o in outcomes])
    owners = np.where(exists, ref_ids, ref_ids - ABSENT)
    wrong = ~exists & np.isin(owners, ref_ids[exists])
    _, of_owner = np.unique(owners, return_inverse=True)

    def sum_per_ref(values: Floats | float, among: npt.NDArray[np.bool_]) -> Floats:
        sums: Floats = np.bincount(of_owner, weights=weight * np.where(among, values, 0)).astype(np.float64)
        return sums[of_owner]

    # One for each ref, shared by its wrong sentences for mRR and by the others for rIoU.
    of_wrong = np.where(wrong, 1 / np.maximum(sum_per_ref(1, wrong), 1), np.nan)
    of_right = np.where(exists & wrong.any(), 1 / np.maximum(sum_per_ref(1, exists), 1), np.nan)
    intersection, union = column([o.intersection for o in outcomes]), column([o.union for o in outcomes])
    riou = sum_per_ref(intersection, exists) / np.maximum(sum_per_ref(union, exists | wrong), 1)
    numerators = {
        "pointit": column([o.point_it for o in outcomes]),
        "pointm": column([o.point_m for o in outcomes]),
        "miou": iou,
        "oiou": intersection,
        **{
            f"prec@{threshold}": reaches(np.where(exists, iou, np.nan), threshold) for threshold in PRECISION_THRESHOLDS
        },
        "box_iou": boxes,
        f"box@{BOX_THRESHOLD}": reaches(boxes, BOX_THRESHOLD),
        "n_acc": np.where(exists, np.nan, is_empty),
        "t_acc": np.where(exists & ~exists.all(), 1 - is_empty, np.nan),  # no measure where everything is there
        "mrr": is_empty * of_wrong,
        "riou": riou * of_right,
    }
    top = np.stack([numerators[name] for name in METRICS], axis=1)
    bottom = np.where(np.isnan(top), np.nan, 1.0)
    bottom[:, METRICS.index("oiou")] = union
    for metric, share in (("mrr", of_wrong), ("riou", of_right)):
        bottom[:, METRICS.index(metric)] *= share
    return weight[:, None] * top, weight[:, None] * bottom


@dataclass(frozen=True)
class _RefSums:
    """The terms of METRICS summed over each ref, float64 (R, M), and how much ground truth there is, (M,)."""

    ref_ids: npt.NDArray[np.int64]
    numerators: Floats
    denominators: Floats
    n_refs: npt.NDArray[np.int64]
    n_expressions: npt.NDArray[np.int64]

    def ratio(self, metric: int) -> float:
        """Return Σ numerator / Σ denominator over all refs, in 0..1."""
        return float(self.numerators[:, metric].sum() / self.denominators[:, metric].sum())


def _sum_by_ref(outcomes: Sequence[Outcome]) -> _RefSums:
    ref_ids, of_ref = np.unique([o.ref_id for o in outcomes], return_inverse=True)
    top, bottom = _terms(outcomes)
    present = ~np.isnan(top)

    def by_ref(values: Floats) -> Floats:
        columns = [np.bincount(of_ref, weights=column, minlength=len(ref_ids)) for column in values.T]
        return np.stack(columns, axis=1)

    numerators, denominators = by_ref(np.nan_to_num(top)), by_ref(np.nan_to_num(bottom))
    expressions = by_ref(present * np.array([o.weight for o in outcomes], dtype=np.float64)[:, None])
    oiou, miou = METRICS.index("oiou"), METRICS.index("miou")
    if present[:, oiou].any() and not denominators[:, oiou].any():  # every union is empty: the mean IoU, not 0/0
        numerators[:, oiou], denominators[:, oiou] = numerators[:, miou], denominators[:, miou]
    n_refs = np.count_nonzero(expressions, axis=0)
    return _RefSums(ref_ids, numerators, denominators, n_refs, expressions.sum(axis=0).astype(np.int64))


def summarise(outcomes: Sequence[Outcome], n_bootstrap: int, seed: int = 0) -> dict[str, Estimate]:
    """Return {metric: Estimate} in percent, in the order of METRICS, less those without ground truth.

    Scores are means over sentences, oIoU is ΣI/ΣU; where only some refs have a ground truth, over those.
    Intervals are bootstrapped over refs.

    >>> import numpy as np
    >>> from ris_pipeline.scoring.metrics import score_expression, summarise
    >>> response = np.array([[0.0, 0.2], [0.0, 1.0]])
    >>> truth = np.array([[False, False], [False, True]])
    >>> outcome = score_expression(
    ...     ref_id=1, sent_id=7, response=response, prediction=response > 0,
    ...     boxes_xyxy=[(1, 1, 2, 2)], edges_xyxy=(1, 1, 2, 2), mask=truth,
    ... )
    >>> summarise([outcome], n_bootstrap=100)["miou"].value
    50.0
    """
    if not outcomes:
        raise RisError("nothing was scored: the split holds no expressions; check it with `ris data check`")
    sums = _sum_by_ref(outcomes)
    known = np.flatnonzero(sums.n_refs)
    if not len(known):
        return {}
    replicates = compute_replicates(sums.numerators[:, known], sums.denominators[:, known], n_bootstrap, seed)
    low, high = percentile_interval(replicates)
    return {
        METRICS[metric]: Estimate(
            value=100 * sums.ratio(int(metric)),
            ci_low=100 * float(low[i]),
            ci_high=100 * float(high[i]),
            n_refs=int(sums.n_refs[metric]),
            n_expressions=int(sums.n_expressions[metric]),
        )
        for i, metric in enumerate(known)
    }


def require_metric(estimates: Mapping[str, Estimate], metric: str) -> Estimate:
    """Return the estimate of one metric; RisError for an unknown name, or without ground truth for it."""
    check_metric(metric)
    if metric not in estimates:
        raise _missing_ground_truth(metric)
    return estimates[metric]


def find_metric(name: str) -> str:
    """Return the name here of a metric or group of them ("prec", "box") in any usual spelling.

    cIoU is oIoU: all intersections over all unions. gIoU, as gRefCOCO has it, is mIoU: the mean over sentences. Another
    name comes back in small letters. Raises RisError for the generalised IoU of boxes, which is another measure.
    """
    word = name.casefold().replace(" ", "").replace("-", "_")
    for long, short in (("precision", "prec"), ("pr@", "prec@"), ("p@", "prec@")):
        if word.startswith(long):
            word = short + word.removeprefix(long)
    if _GENERALISED.fullmatch(word):
        raise RisError(
            f"{name}: the generalised IoU of boxes is not computed; box_iou is their plain IoU, gIoU is mIoU, of masks"
        )
    return _ALIASES.get(word, word)


def select_metrics(word: str) -> list[str]:
    """Return the metrics that a word stands for: "all", a group of them ("prec", "box"), or one."""
    return [name for name in METRICS if word == "all" or name.startswith(word)]


def check_metric(metric: str) -> None:
    """Raise RisError, naming the nearest of METRICS, where `metric` is none of them."""
    if metric not in METRICS:
        raise RisError(f"metric {metric!r} is not known{did_you_mean(metric.lower(), METRICS)}")


def _missing_ground_truth(metric: str) -> RisError:
    needed = _NEEDS[metric]
    return RisError(f"{metric} needs {needed}, and this dataset has none; add {needed} or choose another metric")


def summarise_difference(
    a: Sequence[Outcome], b: Sequence[Outcome], metric: str, n_bootstrap: int, seed: int = 0
) -> Estimate:
    """Return metric(a) − metric(b) in points with its 95 % interval, both scored on the same refs.

    Paired: each resample takes the same refs from both runs, so the difficulty of the refs cancels and the
    interval is much narrower than the two runs' own. Raises RisError where the refs differ.
    """
    check_metric(metric)
    index = METRICS.index(metric)
    sums_a, sums_b = _sum_by_ref(a), _sum_by_ref(b)
    if not (len(a) and len(b)) or not np.array_equal(sums_a.ref_ids, sums_b.ref_ids):
        n_unpaired = len(np.setxor1d(sums_a.ref_ids, sums_b.ref_ids))
        raise RisError(f"the two runs cannot be paired: {n_unpaired} refs are in one of them only; score one split")
    if not (sums_a.n_refs[index] and sums_b.n_refs[index]):
        raise _missing_ground_truth(metric)
    columns = slice(index, index + 1)
    replicates_a, replicates_b = (
        compute_replicates(sums.numerators[:, columns], sums.denominators[:, columns], n_bootstrap, seed)
        for sums in (sums_a, sums_b)
    )
    low, high = percentile_interval(replicates_a - replicates_b)
    return Estimate(
        value=100 * (sums_a.ratio(index) - sums_b.ratio(index)),
        ci_low=100 * float(low[0]),
        ci_high=100 * float(high[0]),
        n_refs=int(sums_a.n_refs[index]),
        n_expressions=int(sums_a.n_expressions[index]),
    )
