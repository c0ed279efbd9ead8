"""PointIt, PointM, IoUs and their summaries on 4×4 arrays that one can check by eye."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from ris_pipeline.datasets.io.segmentations import extent_of
from ris_pipeline.datasets.records import ABSENT
from ris_pipeline.errors import RisError
from ris_pipeline.scoring import metrics
from ris_pipeline.scoring.metrics import Outcome, find_metric, score_expression, summarise, summarise_difference

PEAK_AT_ROW_1_COLUMN_2 = np.array(
    [
        [0.0, 0.1, 0.2, 0.0],
        [0.0, 0.3, 0.9, 0.1],
        [0.0, 0.2, 0.4, 0.1],
        [0.0, 0.0, 0.0, 0.0],
    ]
)
TARGET = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
BOTTOM_ROW = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
# Three of the target's four pixels and one beside it.
SHIFTED = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
EMPTY = np.zeros((4, 4), dtype=bool)

masks_4x4 = hnp.arrays(bool, (4, 4))


def outcome(ref_id=1, sent_id=1, weight=1, point_it=None, point_m=None, overlap=(None, None), box_iou=None):
    return Outcome(ref_id, sent_id, weight, point_it, point_m, *overlap, box_iou)


@pytest.mark.parametrize(
    ("response", "point"),
    [
        (PEAK_AT_ROW_1_COLUMN_2, (1, 2)),
        (np.zeros((4, 4)), (0, 0)),  # equal everywhere: the corner
        (np.array([[0.0, 1.0], [1.0, 0.0]]), (0, 1)),  # of two peaks the first, row by row
        (np.array([[-3.0, -1.0, -2.0]]), (0, 1)),
    ],
)
def test_point_is_the_first_maximum(response, point):
    assert metrics.point_of(response) == point


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((2, 1, 3, 2), True),  # on the upper left corner
        ((0, 0, 2, 1), True),  # on the lower right corner
        ((2.0, 1.0, 2.0, 1.0), True),
        ((2.01, 1, 3, 2), False),
        ((0, 0, 1.99, 1), False),
        ((0, 1.01, 3, 3), False),
        ((0, 0, 3, 0.99), False),
        ((1, 2, 1, 2), False),  # x and y exchanged
    ],
)
def test_point_in_box_includes_the_borders(box, inside):
    assert metrics.point_in_box((1, 2), box) is inside


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        (TARGET, TARGET, (4, 4)),
        (SHIFTED, TARGET, (3, 5)),
        (BOTTOM_ROW, TARGET, (0, 8)),
        (EMPTY, TARGET, (0, 4)),
        (TARGET, EMPTY, (0, 4)),
        (EMPTY, EMPTY, (0, 0)),
    ],
)
def test_intersection_union(prediction, target, expected):
    assert metrics.intersection_union(prediction, target) == expected


@given(masks_4x4, masks_4x4)
def test_intersection_union_counts_sets_of_pixels(a, b):
    pixels_a, pixels_b = ({tuple(p) for p in np.argwhere(m)} for m in (a, b))
    assert metrics.intersection_union(a, b) == (len(pixels_a & pixels_b), len(pixels_a | pixels_b))


@given(masks_4x4)
def test_the_box_of_a_mask_agrees_with_coco(mask):
    x, y, width, height = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))
    assert extent_of(mask) == ((x, y, x + width, y + height) if mask.any() else None)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 2, 2), (2, 0, 4, 2), 0.0),  # side by side
        ((0, 0, 2, 2), (5, 5, 6, 6), 0.0),
        ((0, 0, 4, 4), (1, 1, 2, 3), 2 / 16),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),  # no area
    ],
)
def test_box_iou(a, b, expected):
    assert metrics.box_iou(a, b) == pytest.approx(expected)
    assert metrics.box_iou(b, a) == pytest.approx(expected)


def test_score_expression_with_all_ground_truth():
    scored = score_expression(
        ref_id=7,
        sent_id=70,
        response=PEAK_AT_ROW_1_COLUMN_2,
        prediction=SHIFTED,
        boxes_xyxy=[(1.0, 1.0, 3.0, 3.0)],
        edges_xyxy=(1.0, 1.0, 3.0, 3.0),
        mask=TARGET,
    )
    # SHIFTED's box is 1,1,4,3: 6 pixels, 4 of them the target's.
    assert scored == Outcome(7, 70, 1, True, True, 3, 5, pytest.approx(4 / 6))
    assert scored.iou == pytest.approx(0.6)


def test_point_in_box_but_off_the_mask():
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)
    response = np.array([[0, 0, 0], [0, 5, 0], [0, 0, 0]], dtype=np.float32)
    scored = score_expression(
        ref_id=1,
        sent_id=1,
        response=response,
        prediction=response > 0,
        boxes_xyxy=[(0, 0, 3, 3)],
        edges_xyxy=(0, 0, 3, 3),
        mask=ring,
    )
    assert (scored.point_it, scored.point_m, scored.iou) == (True, False, 0.0)


def test_empty_prediction_has_iou_0():
    scored = score_expression(
        ref_id=1,
        sent_id=1,
        response=np.zeros((4, 4)),
        prediction=EMPTY,
        boxes_xyxy=[(1, 1, 3, 3)],
        edges_xyxy=(1, 1, 3, 3),
        mask=TARGET,
    )
    assert (scored.point_it, scored.point_m) == (False, False)
    assert (scored.intersection, scored.union, scored.iou, scored.box_iou) == (0, 4, 0.0, 0.0)
    assert outcome(overlap=(0, 0)).iou == 0.0  # nothing predicted, nothing there


def test_missing_ground_truth_gives_none():
    scored = score_expression(
        ref_id=1,
        sent_id=1,
        response=PEAK_AT_ROW_1_COLUMN_2,
        prediction=TARGET,
        boxes_xyxy=(),
        edges_xyxy=None,
        mask=None,
    )
    assert scored == outcome()
    assert scored.iou is None


def test_score_expression_refuses_nan_and_other_sizes():
    sound = {
        "ref_id": 5,
        "sent_id": 50,
        "response": PEAK_AT_ROW_1_COLUMN_2,
        "prediction": TARGET,
        "boxes_xyxy": (),
        "edges_xyxy": None,
    }
    with pytest.raises(RisError, match=r"ref 5, sentence 50: .*NaN"):
        score_expression(**{**sound, "response": np.full((4, 4), np.nan)}, mask=None)
    with pytest.raises(RisError, match=r"ref 5: .*\(4, 5\)"):
        score_expression(**sound, mask=np.zeros((4, 5), dtype=bool))


HALF_AND_HALF = [
    outcome(1, 10, point_it=True, point_m=True, overlap=(6, 10), box_iou=0.5),
    outcome(1, 11, point_it=True, point_m=False, overlap=(5, 10), box_iou=0.49),
    outcome(2, 20, point_it=False, point_m=False, overlap=(0, 20), box_iou=0.0),
    outcome(3, 30, point_it=True, point_m=True, overlap=(9, 10), box_iou=1.0),
]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("pointit", 75.0),
        ("pointm", 50.0),
        ("miou", 50.0),  # (.6 + .5 + 0 + .9) / 4
        ("oiou", 40.0),  # 20 / 50
        ("prec@0.5", 75.0),  # 0.5 itself counts
        ("prec@0.6", 50.0),
        ("prec@0.7", 25.0),
        ("prec@0.9", 25.0),
        ("box_iou", 49.75),
        ("box@0.5", 50.0),
    ],
)
def test_summary_values(metric, expected):
    estimate = summarise(HALF_AND_HALF, n_bootstrap=20)[metric]
    assert estimate.value == pytest.approx(expected)
    assert (estimate.n_refs, estimate.n_expressions) == (3, 4)
    assert estimate.ci_low <= estimate.ci_high


def test_summary_has_every_metric_in_order():
    wrong = dataclasses.replace(score_absent(EMPTY), ref_id=HALF_AND_HALF[0].ref_id + ABSENT)
    assert tuple(summarise([*HALF_AND_HALF, wrong], n_bootstrap=2)) == metrics.METRICS


def test_weight_counts_a_map_once_per_sentence():
    once_each = [outcome(1, s, point_it=True, overlap=(2, 4)) for s in range(3)]
    other = outcome(2, 9, point_it=False, overlap=(0, 6))
    weighted = [dataclasses.replace(once_each[0], weight=3), other]
    # (3·1 + 0) / 4 sentences; oIoU 6 / (12 + 6)
    estimates = summarise(weighted, 20)
    assert estimates["pointit"].value == 75.0
    assert estimates["oiou"].value == pytest.approx(100 / 3)
    assert (estimates["pointit"].n_refs, estimates["pointit"].n_expressions) == (2, 4)
    assert summarise([*once_each, other], 20) == estimates


def test_metrics_without_ground_truth_are_absent():
    estimates = summarise([outcome(1, 1, point_it=True, box_iou=0.7), outcome(2, 2, point_it=False, box_iou=0.1)], 20)
    assert list(estimates) == ["pointit", "box_iou", "box@0.5"]
    assert metrics.require_metric(estimates, "pointit").value == 50.0
    with pytest.raises(RisError, match="miou needs masks"):
        metrics.require_metric(estimates, "miou")
    with pytest.raises(RisError, match="did you mean 'pointit'"):
        metrics.require_metric(estimates, "PointIt")
    assert summarise([outcome()], 20) == {}


def test_partial_ground_truth_is_scored_where_it_is():
    mixed = [outcome(1, 1, point_it=True, weight=2), outcome(2, 2), outcome(3, 3, point_it=False)]
    estimate = summarise(mixed, 1000)["pointit"]
    assert (estimate.value, estimate.n_refs, estimate.n_expressions) == (pytest.approx(200 / 3), 2, 3)
    assert (estimate.ci_low, estimate.ci_high) == (0.0, 100.0)


def test_oiou_of_nothing_but_empty_masks_is_0():
    estimate = summarise([outcome(1, 1, overlap=(0, 0)), outcome(2, 2, overlap=(0, 0))], 20)["oiou"]
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == (0.0, 0.0, 0.0)


def test_summary_of_nothing_is_an_error():
    with pytest.raises(RisError, match="nothing was scored"):
        summarise([], 20)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 9)), min_size=1, max_size=12))
def test_summary_does_not_depend_on_order(records):
    outcomes = [outcome(ref, i, point_it=hit, overlap=(n, 9)) for i, (ref, hit, n) in enumerate(records)]
    forward, backward = summarise(outcomes, 20), summarise(outcomes[::-1], 20)
    for metric, estimate in forward.items():
        assert dataclasses.astuple(backward[metric]) == pytest.approx(dataclasses.astuple(estimate))
        assert -1e-9 <= estimate.ci_low <= estimate.ci_high <= 100 + 1e-9


def test_difference_is_paired():
    rng = np.random.default_rng(0)
    hits = rng.random(400) < 0.5
    worse = [outcome(i, i, point_it=bool(hit)) for i, hit in enumerate(hits)]
    # The better run hits the same refs and every tenth of the others' turn as well.
    better = [outcome(i, i, point_it=bool(hit) or i % 10 == 0) for i, hit in enumerate(hits)]
    gained = 100 * np.mean([not hit and i % 10 == 0 for i, hit in enumerate(hits)])
    difference = summarise_difference(better, worse, "pointit", 1000)
    assert difference.value == pytest.approx(gained)
    assert 0 < difference.ci_low < gained < difference.ci_high
    # The binomial's normal approximation for a share of refs gained.
    half_width = 1.96 * np.sqrt(gained * (100 - gained) / 400)
    assert difference.ci_high - difference.ci_low == pytest.approx(2 * half_width, rel=0.1)
    alone = summarise(better, 1000)["pointit"]
    assert alone.ci_high - alone.ci_low > 2 * (difference.ci_high - difference.ci_low)


def test_difference_pairs_one_map_per_ref_with_one_per_sentence():
    prms = [outcome(1, 10, weight=2, overlap=(1, 2)), outcome(2, 20, overlap=(1, 4))]
    each = [outcome(2, 20, overlap=(2, 4)), outcome(1, 10, overlap=(2, 2)), outcome(1, 11, overlap=(1, 2))]
    # (1 + .5 + .5) / 3 − (.5·2 + .25) / 3
    assert summarise_difference(each, prms, "miou", 20).value == pytest.approx(25.0)


def test_difference_of_a_run_with_itself_is_0():
    difference = summarise_difference(HALF_AND_HALF, HALF_AND_HALF, "oiou", 20)
    assert (difference.value, difference.ci_low, difference.ci_high) == (0.0, 0.0, 0.0)
    assert (difference.n_refs, difference.n_expressions) == (3, 4)


def test_difference_needs_the_same_refs_and_a_metric():
    with pytest.raises(RisError, match="1 refs are in one of them only"):
        summarise_difference(HALF_AND_HALF, HALF_AND_HALF[:-1], "miou", 20)
    with pytest.raises(RisError, match="miou needs masks"):
        summarise_difference([outcome()], [outcome()], "miou", 20)
    with pytest.raises(RisError, match="did you mean 'oiou'"):
        summarise_difference(HALF_AND_HALF, HALF_AND_HALF, "ooiou", 20)


def test_a_perfect_mask_of_an_inclusive_box_has_box_iou_1():
    """ReferIt's boxes end on the last pixel inside: rows and columns 2 to 11 of a 10×10 object."""
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    response = mask.astype(float)
    scored = score_expression(
        ref_id=1, sent_id=1, response=response, prediction=mask, boxes_xyxy=[(2, 2, 11, 11)], edges_xyxy=(2, 2, 12, 12),
        mask=None,
    )  # fmt: skip
    assert scored.box_iou == 1
    response[11, 11] = 2  # the last pixel inside counts as a hit, the next one does not
    boxes = {"boxes_xyxy": [(2, 2, 11, 11)], "edges_xyxy": (2, 2, 12, 12)}
    corner = {"ref_id": 1, "sent_id": 1, "prediction": mask, **boxes, "mask": None}
    assert score_expression(response=response, **corner).point_it
    response[12, 12] = 3
    assert not score_expression(response=response, **corner).point_it
    assert score_expression(response=response, **{**corner, "prediction": ~mask & False}).is_empty


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mIoU", "miou"), ("PointIt", "pointit"), ("point-m", "pointm"), ("oIoU", "oiou"), ("cIoU", "oiou"),
        ("gIoU", "miou"), ("prec@0.5", "prec@0.5"), ("Pr@0.7", "prec@0.7"), ("P@0.9", "prec@0.9"),
        ("Precision@0.5", "prec@0.5"), ("box_iou", "box_iou"), ("Box IoU", "boxiou"), ("iou", "iou"),
        ("N-acc", "n_acc"), ("tAcc", "t_acc"), ("mRR", "mrr"), ("rIoU", "riou"),
    ],
)  # fmt: skip
def test_usual_spellings_of_metrics(name, found):
    assert find_metric(name) == {"boxiou": "box_iou"}.get(found, found)


def score_absent(prediction):
    return score_expression(
        ref_id=4, sent_id=40, response=PEAK_AT_ROW_1_COLUMN_2, prediction=prediction,
        boxes_xyxy=(), edges_xyxy=None, mask=EMPTY, exists=False,
    )  # fmt: skip


def test_a_sentence_about_nothing_is_right_where_nothing_is_found():
    right, wrong = score_absent(EMPTY), score_absent(BOTTOM_ROW)
    assert (right.intersection, right.union, right.iou, right.is_empty) == (0, 0, 1.0, True)
    assert (wrong.intersection, wrong.union, wrong.iou, wrong.is_empty) == (0, 4, 0.0, False)
    assert (right.point_it, right.point_m, right.box_iou) == (None, None, None)


def test_scores_with_sentences_about_nothing():
    """By hand, by gRefCOCO's rules: three sentences about something, one of them unanswered, and two about nothing."""
    outcomes = [
        outcome(1, 10, point_m=True, overlap=(6, 10)),
        outcome(2, 20, point_m=True, overlap=(8, 10)),
        dataclasses.replace(outcome(3, 30, point_m=False, overlap=(0, 10)), is_empty=True),
        score_absent(EMPTY),
        dataclasses.replace(score_absent(BOTTOM_ROW), ref_id=5, sent_id=50),
    ]
    estimates = summarise(outcomes, n_bootstrap=10)
    expected = {
        "miou": 48.0,  # gIoU: (.6 + .8 + 0 + 1 + 0) / 5
        "oiou": 1400 / 34,  # cIoU: (6 + 8) / (10 + 10 + 10 + 0 + 4)
        "prec@0.5": 200 / 3,  # of what is there
        "pointm": 200 / 3,
        "n_acc": 50.0,
        "t_acc": 200 / 3,
    }
    assert {name: estimates[name].value for name in expected} == pytest.approx(expected)
    assert (estimates["n_acc"].n_expressions, estimates["t_acc"].n_expressions) == (2, 3)
    assert "pointit" not in estimates


def test_scores_of_refs_that_also_have_wrong_sentences():
    """By hand, by R-RefCOCO's rules: ref 1 has two wrong sentences, one of which finds 4 pixels; ref 2 one, unanswered;
    ref 3 none."""
    found = dataclasses.replace(score_absent(BOTTOM_ROW), ref_id=1 + ABSENT)
    outcomes = [
        outcome(1, 10, overlap=(6, 10)),
        outcome(1, 11, overlap=(2, 6)),
        found,
        dataclasses.replace(score_absent(EMPTY), ref_id=1 + ABSENT, sent_id=41),
        outcome(2, 20, overlap=(9, 10)),
        dataclasses.replace(score_absent(EMPTY), ref_id=2 + ABSENT, sent_id=42),
        outcome(3, 30, overlap=(1, 10)),
    ]
    estimates = summarise(outcomes, n_bootstrap=10)
    assert estimates["mrr"].value == pytest.approx(75.0)  # (1/2 + 1) / 2
    assert estimates["riou"].value == pytest.approx(100 * (8 / 20 + 9 / 10 + 1 / 10) / 3)
    assert estimates["n_acc"].value == pytest.approx(200 / 3)  # by sentences
    assert (estimates["mrr"].n_refs, estimates["riou"].n_refs) == (2, 3)
    heavier = [dataclasses.replace(outcomes[0], weight=3), found, outcomes[4]]  # PRMS: a map for three sentences
    assert summarise(heavier, n_bootstrap=10)["riou"].value == pytest.approx(100 * (18 / 34 + 9 / 10) / 2)


def test_absent_refs_of_their_own_have_no_mrr():
    assert not {"mrr", "riou"} & summarise([*HALF_AND_HALF, score_absent(EMPTY)], n_bootstrap=2).keys()


def test_who_finds_nothing_is_right_about_nothing_alone():
    missed = dataclasses.replace(outcome(1, 10, overlap=(0, 10)), is_empty=True)
    estimates = summarise([missed, score_absent(EMPTY)], n_bootstrap=10)
    assert [estimates[name].value for name in ("n_acc", "t_acc", "miou", "oiou")] == [100, 0, 50, 0]


def test_0_by_0_is_defined():
    """No pixel in any union: oIoU is the mean IoU."""
    assert summarise([score_absent(EMPTY)], n_bootstrap=10)["oiou"].value == 100
    assert summarise([outcome(overlap=(0, 0))], n_bootstrap=10)["oiou"].value == 0


def test_no_absence_is_scored_where_everything_is_there():
    estimates = summarise(HALF_AND_HALF, n_bootstrap=10)
    assert not {"n_acc", "t_acc"} & estimates.keys()
    with pytest.raises(RisError, match="n_acc needs sentences about nothing in their image, and this dataset has none"):
        metrics.require_metric(estimates, "n_acc")


def test_the_point_may_lie_in_any_box_and_ignored_pixels_count_neither_way():
    boxes = [(0, 3, 3, 3), (2, 1, 3, 2)]
    shared = {"ref_id": 1, "sent_id": 1, "response": PEAK_AT_ROW_1_COLUMN_2, "edges_xyxy": (0, 1, 4, 4)}
    scored = score_expression(prediction=SHIFTED, mask=TARGET, boxes_xyxy=boxes, **shared)
    assert scored.point_it
    assert not score_expression(prediction=SHIFTED, mask=TARGET, boxes_xyxy=boxes[:1], **shared).point_it
    right_column = np.zeros((4, 4), dtype=bool)
    right_column[:, 3] = True  # of SHIFTED's pixels the one that is no target's
    scored = score_expression(prediction=SHIFTED, mask=TARGET, boxes_xyxy=(), ignored=right_column, **shared)
    assert (scored.intersection, scored.union) == (3, 4)


@pytest.mark.parametrize("name", ["box_gIoU", "generalised IoU", "generalized_iou", "GIoU-box"])
def test_the_generalised_iou_of_boxes_is_refused(name):
    with pytest.raises(RisError, match=r"generalised IoU of boxes is not computed.* gIoU is mIoU"):
        find_metric(name)
