"""The options of test time: scores in rows beside the plain ones, which stay as they are, and predictions."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from calls import places_in
from ris_pipeline.datasets.io.images import load_image
from ris_pipeline.refine.masks import clean_masks


def test_they_are_rows_of_their_own(copy_of_project, call_ris, ris, capsys):
    def score(*options):
        capsys.readouterr()
        ris(copy_of_project, "score", "--split", "val", *options, "--json")
        return json.loads(capsys.readouterr().out)

    (plain,) = score("--stage", "step2")
    (found,) = score("--mirror", "--crf")  # of all rows only the network's
    assert (plain["scored"], found["scored"], found["paper"]) == ("step2", "step2+mirror+crf", {})
    scores = next((copy_of_project / "runs").glob("*/scores"))
    assert len({(scores / f"latest-{row}-val").readlink() for row in ("step2", "step2+mirror+crf")}) == 2
    assert score("--stage", "step2") == [plain]
    assert call_ris("score", "--stage", "prms", "--crf", "--split", "val", **places_in(copy_of_project)) == 1
    assert "--crf is for networks, as step2" in capsys.readouterr().err


def test_sentences_that_compete_are_another_row_with_smaller_masks(copy_of_project, ris, capsys):
    capsys.readouterr()
    ris(copy_of_project, "score", "--split", "val", "--sizes", "--json")
    (alone,) = json.loads(capsys.readouterr().out)
    ris(copy_of_project, "score", "--split", "val", "--sizes", "--compete", "--json")
    (together,) = json.loads(capsys.readouterr().out)
    assert (alone["scored"], together["scored"], together["paper"]) == ("step2+sizes", "step2+sizes+compete", {})
    assert alone["metrics"]["pointit"] == together["metrics"]["pointit"]
    ris(copy_of_project, "score", "--split", "val", "--rivals", "--json")
    assert json.loads(capsys.readouterr().out)[0]["scored"] == "step2+rivals"
    photo = next((copy_of_project / "data").rglob("*.jpg"))
    masks = []
    for options in ((), ("--compete",)):
        ris(copy_of_project, "predict", photo, "the star", "the circle", "--out", copy_of_project / "out", *options)
        records = json.loads((copy_of_project / "out" / "predictions.json").read_text())
        masks.append(np.stack([np.array(PIL.Image.open(record["mask"])) > 0 for record in records]))
    assert records[0]["test_time"] == ["compete"]
    assert not (masks[1] & ~masks[0]).any()


def test_masks_of_predictions_are_cleaned_and_maps_stay(project, ris, tmp_path):
    photo = next((project / "data").rglob("*.jpg"))
    records = {}
    for name, options in (("plain", ()), ("crf", ("--crf",))):
        ris(project, "predict", photo, "the star", "the circle", "--out", tmp_path / name, *options)
        records[name] = json.loads((tmp_path / name / "predictions.json").read_text())
    for plain, cleaned in zip(records["plain"], records["crf"], strict=True):
        assert ("test_time" in plain, cleaned["test_time"]) == (False, ["crf"])
        assert Path(plain["map"]).read_bytes() == Path(cleaned["map"]).read_bytes()
        before, after = (np.array(PIL.Image.open(record["mask"])) > 0 for record in (plain, cleaned))
        np.testing.assert_array_equal(after, clean_masks(load_image(photo), before[None])[0])
    assert records["plain"][0]["segmentation"] != records["crf"][0]["segmentation"]


def test_the_mirror_image_of_an_image_has_the_mirrored_map(project, ris, tmp_path):
    """The mean of two looks is the same from either side."""
    photo = next((project / "data").rglob("*.jpg"))
    PIL.Image.open(photo).save(tmp_path / "a.png")
    PIL.ImageOps.mirror(PIL.Image.open(photo)).save(tmp_path / "b.png")
    maps = []
    for name, sentence in (("a", "the star on the left"), ("b", "the star on the right")):
        words = ("predict", tmp_path / f"{name}.png", sentence, "--out", tmp_path / name, "--mirror")
        ris(project, *words, "--save-map", tmp_path / f"{name}.npy")
        maps.append(np.load(tmp_path / f"{name}.npy"))
        (record,) = json.loads((tmp_path / name / "predictions.json").read_text())
        assert record["test_time"] == ["mirror"]
    np.testing.assert_allclose(maps[0], maps[1][:, ::-1], atol=1e-4)
