"""Scores on real annotations, where they lie beside the checkout: from the stored grids, computed again from scratch.

Nothing of the project takes part in the second computation: grids are read by zarr, annotations by json and pickle,
masks by pycocotools; maps are made in float64. So at pixels where a map is within rounding of 0, or of its largest
value, the two may differ; the brackets below hold what either may say.
"""

import csv
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

from by_hand import resize_matrix
from calls import places_in
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.layout import WEIGHTS
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.config import Step1Config
from ris_pipeline.networks.load import step1_from_config

SAMPLE = Path(__file__).parents[2].parent / "shared" / "real-sample"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real samples are not here"),
]
INPUT, NEAR = 160, 1e-5  # a grid of 5×5; NEAR: of a map in [0, 1]
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@pytest.fixture(scope="module", params=["coco", "coco-unique"])
def scored(request, tmp_path_factory, tiny_clip, tiny_stages, call_ris):
    """The sample's folder and the runs: Step-1 of random values, its responses on val, their scores."""
    root = tmp_path_factory.mktemp("scores")
    card = (
        'name = "refcoco"\nformat = "refer"\npartition = "unc"\nannotations = "refer/refcoco"\nimages = "train2014"\n'
    )
    (root / "refcoco.toml").write_text(f'{card}[splits]\nval = "any"\n{tiny_stages}')
    config = Step1Config(
        clip=str(tiny_clip), clip_weights=None, aux_clip=str(tiny_clip), aux_weights=None, input_size=INPUT, hidden=16
    )
    torch.manual_seed(0)
    network = step1_from_config(config)
    with publish(Request(root / "runs", "refcoco", "step1", dataclasses.asdict(config), {})) as work:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, work.path / WEIGHTS)
    data = SAMPLE / request.param
    places = {**places_in(root), "dataset": root / "refcoco.toml", "data_root": data}
    for command in ("dump-responses", "score"):
        assert call_ris(command, "--split", "val", **places, quiet=True, debug=True) == 0
    return data / "refer" / "refcoco", root / "runs"


def make_map(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """The response map of a grid: up to the input, positive part, to the image, over its largest value."""
    h, w = grid.shape
    upsampled = resize_matrix(h, INPUT, False) @ grid.astype(float) @ resize_matrix(w, INPUT, False).T
    positive = np.maximum(upsampled, 0)
    full = resize_matrix(INPUT, height, True) @ positive @ resize_matrix(INPUT, width, True).T
    return full / (full.max() + 1e-5)


def read_truth(folder: Path) -> dict:
    """{ref_id: (box x1 y1 x2 y2, mask, sentence ids)} of val."""
    instances = json.loads((folder / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    truth = {}
    for ref in pickle.loads((folder / "refs(unc).p").read_bytes()):
        if ref["split"] == "val":
            annotation = annotations[ref["ann_id"]]
            x, y, w, h = annotation["bbox"]
            parts = annotation["segmentation"]
            size = sizes[ref["image_id"]]
            rle = coco_mask.merge(coco_mask.frPyObjects(parts, *size)) if isinstance(parts, list) else parts
            mask = coco_mask.decode(rle).astype(bool)
            truth[ref["ref_id"]] = (x, y, x + w, y + h), mask, [s["sent_id"] for s in ref["sentences"]]
    return truth


def bracket(response: np.ndarray, box: tuple, mask: np.ndarray) -> dict:
    """Least and most of what a map may score: hits of the box, of the mask; intersection, union."""
    ys, xs = np.nonzero(response >= response.max() - NEAR)
    if response.max() <= NEAR:
        ys, xs = np.array([0]), np.array([0])  # a map of zeros points at the corner
    in_box = [box[0] <= x <= box[2] and box[1] <= y <= box[3] for y, x in zip(ys, xs, strict=True)]
    on_mask = mask[ys, xs]
    # Where every value that is interpolated is 0, the sum is 0 in any precision.
    least, most = response > NEAR, response > 0
    return {
        "point_it": (min(in_box), max(in_box)),
        "point_m": (on_mask.min(), on_mask.max()),
        "intersection": ((least & mask).sum(), (most & mask).sum()),
        "union": ((least | mask).sum(), (most | mask).sum()),
    }


def read_scores(runs: Path, name: str) -> tuple[dict, list[dict]]:
    artifact = find_latest(runs, "refcoco", "scores", scored=name, split="val")
    assert artifact is not None
    with (artifact.path / "outcomes.csv").open() as file:
        outcomes = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return json.loads((artifact.path / "scores.json").read_text())["metrics"], outcomes


@pytest.mark.parametrize("name", ["step1", "prms"])
def test_scores_computed_again(scored, name):
    folder, runs = scored
    truth = read_truth(folder)
    responses = find_latest(runs, "refcoco", "responses", split="val")
    store = zarr.open_group(responses.path / "val.zarr", mode="r")
    grids, selected = store["logits"][:], store["selected"][:]
    row_of = {int(sent_id): row for row, sent_id in enumerate(store["sent_id"][:])}
    metrics, outcomes = read_scores(runs, name)

    expected_ids = [sent_id for _, _, sent_ids in truth.values() for sent_id in sent_ids]
    assert sorted(row_of) == sorted(expected_ids)
    if name == "prms":
        expected_ids = [sent_id for sent_id in expected_ids if selected[row_of[sent_id]]]
        assert len(expected_ids) == len(truth)
    assert sorted(int(outcome["sent_id"]) for outcome in outcomes) == sorted(expected_ids)

    unsure = 0
    for outcome in outcomes:
        box, mask, sent_ids = truth[int(outcome["ref_id"])]
        assert outcome["weight"] == (len(sent_ids) if name == "prms" else 1)
        found = bracket(make_map(grids[row_of[int(outcome["sent_id"])]], *mask.shape), box, mask)
        for key, (least, most) in found.items():
            assert least <= outcome[key] <= most, (outcome, key)
        unsure += any(found[key][0] != found[key][1] for key in ("point_it", "point_m"))
        assert found["union"][1] - found["union"][0] <= 0.01 * mask.size
    # A largest cell at the border is a plateau, where rounding says which pixel is the largest.
    assert unsure <= 0.1 * len(outcomes)

    # The table's lines are right; now their averages, by plain sums over sentences.
    n = sum(outcome["weight"] for outcome in outcomes)
    ious = [
        (outcome["intersection"] / outcome["union"] if outcome["union"] else 0.0, outcome["weight"])
        for outcome in outcomes
    ]
    expected = {
        "pointit": sum(outcome["weight"] * outcome["point_it"] for outcome in outcomes) / n,
        "pointm": sum(outcome["weight"] * outcome["point_m"] for outcome in outcomes) / n,
        "miou": sum(weight * iou for iou, weight in ious) / n,
        "oiou": sum(outcome["weight"] * outcome["intersection"] for outcome in outcomes)
        / sum(outcome["weight"] * outcome["union"] for outcome in outcomes),
        **{f"prec@{t}": sum(weight for iou, weight in ious if iou >= t) / n for t in THRESHOLDS},
    }
    for key, value in expected.items():
        assert metrics[key]["value"] == pytest.approx(100 * value, abs=1e-9), key
        assert metrics[key]["n_expressions"] == n
