"""Labels chosen among class-agnostic masks: another variant, by another supervision."""

import json

import numpy as np
import pytest

from noisy_proposals import propose
from ris_pipeline.datasets.io.segmentations import load_segmentation


@pytest.fixture
def proposals(copy_of_project):
    """A folder of noisy proposals for all images of the data set."""
    (path,) = (copy_of_project / "data").rglob("instances.json")
    found = json.loads(path.read_text())
    folder = copy_of_project / "proposals"
    folder.mkdir()
    for image in found["images"]:
        objects = [
            load_segmentation(one["segmentation"], None) if isinstance(one["segmentation"], dict)
            else load_segmentation(one["segmentation"], (image["height"], image["width"]))
            for one in found["annotations"] if one["image_id"] == image["id"]
        ]  # fmt: skip
        name = image["file_name"].rpartition(".")[0].rpartition("/")[2]
        (folder / f"{name}.json").write_text(json.dumps(propose(objects, np.random.default_rng(image["id"]))))
    return folder


def test_they_are_labels_of_their_own_and_scored_by_their_own_name(copy_of_project, proposals, ris, capsys):
    runs = next((copy_of_project / "runs").glob("*/pseudolabels"))
    plain = (runs / "latest-no-refine").readlink()
    ris(copy_of_project, "make-pseudolabels", "--proposals", proposals)
    first = (runs / "latest-proposals").readlink()
    assert (runs / "latest-no-refine").readlink() == plain != first
    next(proposals.glob("*.json")).write_text("[]")  # of whatever split: only train counts
    for path in proposals.glob("*.json"):
        path.write_text(path.read_text() + " ")
    ris(copy_of_project, "make-pseudolabels", "--proposals", proposals)
    assert (runs / "latest-proposals").readlink() != first
    capsys.readouterr()
    ris(copy_of_project, "score", "--split", "train", "--stage", "pseudolabels", "--json")
    scores = {score["scored"]: score for score in json.loads(capsys.readouterr().out)}
    assert {"pseudo-plain", "pseudo-proposals"} <= set(scores)
    assert "pseudolabels/proposals" in scores["pseudo-proposals"]["inputs"]
    ris(copy_of_project, "train-step2", "--proposals")
    step2 = runs.parent / "step2"
    manifest = json.loads((step2 / "latest-proposals" / "manifest.json").read_text())
    assert manifest["inputs"]["pseudolabels/proposals"] == (runs / "latest-proposals").readlink().name
    capsys.readouterr()
    ris(copy_of_project, "score", "--split", "val", "--stage", "step2", "--json")
    tiers = {score["scored"]: score["supervision"] for score in json.loads(capsys.readouterr().out)}
    assert tiers == {"step2": "text", "step2-proposals": "class-agnostic masks"}
    ris(copy_of_project, "status", "--json")
    states = {row["artifact"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states["pseudolabels/proposals"] == states["step2/proposals"] == "fresh"
