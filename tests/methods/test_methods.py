"""A compared method is one file and one line of registration: from there on it is dumped, scored and shown."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from calls import places_in
from mean_colour import MeanColourConfig
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.layout import store_path
from ris_pipeline.datasets.io.images import to_pixels
from ris_pipeline.errors import RisError
from ris_pipeline.experiments.file import FOLDERS, load_experiment
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods import METHODS, Method, find_method, list_compared

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ris(tmp_path, write_tiny_card, call_ris, monkeypatch):
    """A function that runs a command on a generated data set, with the method registered."""
    monkeypatch.setitem(
        METHODS, "mean-colour", Method("mean-colour", "Mean colour", "mean_colour", MeanColourConfig, 1)
    )
    write_tiny_card(tmp_path, train=2, val=3)

    def run(*arguments):
        return call_ris(*arguments, **places_in(tmp_path))

    assert run("data", "make-shapes") == 0
    return run


def test_a_method_is_dumped_scored_and_shown(ris, tmp_path, capsys):
    assert ris("dump-responses", "--method", "mean-colour", "--split", "val") == 0
    artifact = find_latest(tmp_path / "runs", "tiny", "responses", method="mean-colour", split="val")
    store = ResponseStore.open(store_path(artifact.path, "val"))
    assert store.missing_blocks() == []
    assert (store.rule.threshold, store.grid_hw) == (0.5, (8, 8))
    assert artifact.manifest["inputs"]["method"] == "mean-colour@1"
    assert artifact.manifest["configuration"]["mean-colour"] == {"cells": 8}
    capsys.readouterr()

    assert ris("score", "--split", "val", "--json") == 0
    rows = {row["scored"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["chance", "mean-colour"]
    # The shapes stand out from a plain background: cells far from its colour cover some of each.
    assert rows["mean-colour"]["metrics"]["miou"]["value"] > rows["chance"]["metrics"]["miou"]["value"]

    assert ris("report", "--out", tmp_path / "report.html", "--quiet") == 0
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"<th[^>]*>Mean colour</th>", page)  # its row of the score table
    columns = re.findall(r'<li class="aside">.*?<span class="title">([^<]*)', page, flags=re.DOTALL)
    assert columns.count("Mean colour ") >= 3  # and its column of the gallery, which is shown on demand
    assert "as in the paper's Fig. 2" in page


def test_its_settings_are_changed_by_the_table_and_a_dot(ris, tmp_path, capsys):
    dump = ("dump-responses", "--method", "mean-colour", "--split", "val", "--set")
    assert ris(*dump, "mean-colour.cells=4") == 0
    artifact = find_latest(tmp_path / "runs", "tiny", "responses", method="mean-colour", split="val")
    assert artifact.manifest["configuration"]["mean-colour"] == {"cells": 4}
    capsys.readouterr()
    assert ris("status", "--json") == 0
    states = {row["artifact"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states["responses/mean-colour-val"] == "fresh"  # as it was asked for
    assert ris(*dump, "mean-color.cells=4") == 1
    assert "--set mean-color.cells: there is no stage or method 'mean-color'; did you mean 'mean-colour'?" in (
        capsys.readouterr().err
    )


def test_a_method_without_training_is_not_trained(ris, capsys):
    assert ris("train-step1", "--method", "mean-colour") == 1
    assert "mean-colour needs no training; run: ris dump-responses --method mean-colour" in capsys.readouterr().err


def test_a_method_segments_ones_own_image(ris, tmp_path, capsys):
    image = next((tmp_path / "data" / "tiny" / "images").glob("*.jpg"))
    assert ris("predict", image, "the red square", "--method", "mean-colour", "--out", tmp_path / "out") == 0
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["network"] == "mean-colour of tiny alone, untrained"


def test_step2_learns_from_a_methods_maps(ris, tmp_path):
    assert ris("dump-responses", "--method", "mean-colour", "--split", "train") == 0
    assert ris("make-pseudolabels", "--method", "mean-colour") == 0
    assert ris("train-step2", "--method", "mean-colour") == 0
    runs = tmp_path / "runs"
    labels = find_latest(runs, "tiny", "pseudolabels", method="mean-colour", refine=True)
    step2 = find_latest(runs, "tiny", "step2", method="mean-colour", labels="pseudo")
    assert step2.manifest["inputs"]["pseudolabels/mean-colour-refine"] == labels.digest
    assert find_latest(runs, "tiny", "step2", labels="pseudo") is None


def test_step2_of_a_method_does_not_start_from_tris(ris, capsys):
    assert ris("train-step2", "--method", "mean-colour", "--set", "encoders_from_step1=true") == 1
    assert "give mean-colour its own start by --set encoders_from_step1=false" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["train-step1", "--method", "maskclip-trained"], "ris dump-responses --method maskclip --split train"),
        (["dump-responses", "--method", "wwbl"], "ris train-step1 --method wwbl"),
        (["predict", "IMAGE", "the dog", "--method", "amr"], "ris train-step1 --method amr"),
        (["make-pseudolabels", "--method", "car"], "ris dump-responses --method car --split train"),
        (["train-step2", "--method", "car"], "ris make-pseudolabels --refine --method car"),
    ],
)
def test_what_is_missing_is_named_with_its_command(words, advice, ris, tmp_path, capsys):
    image = next((tmp_path / "data" / "tiny" / "images").glob("*.jpg"))
    assert ris(*[image if word == "IMAGE" else word for word in words]) == 1
    assert f"run: {advice} --dataset" in capsys.readouterr().err


def test_a_network_of_another_method_is_refused_by_name(ris, tmp_path, capsys):
    assert ris("train-step1") == 0
    step1 = find_latest(tmp_path / "runs", "tiny", "step1").path
    image = next((tmp_path / "data" / "tiny" / "images").glob("*.jpg"))
    for words in (
        ("train-step1", "--method", "gbs", "--init", step1),
        ("predict", image, "the dog", "--method", "gbs", "--checkpoint", step1),
    ):
        assert ris(*words) == 1
        assert "trained by tris, not by gbs" in capsys.readouterr().err


def test_its_responses_are_made_again_where_its_code_or_settings_changed(ris, tmp_path, capsys, monkeypatch):
    dump = ("dump-responses", "--method", "mean-colour", "--split", "val")
    assert ris(*dump) == 0
    assert ris(*dump) == 0
    assert "up to date" in capsys.readouterr().err
    changed = Method("mean-colour", "Mean colour", "mean_colour", MeanColourConfig, 2)
    monkeypatch.setitem(METHODS, "mean-colour", changed)
    assert ris("status", "--json") == 0
    states = {row["artifact"]: row["why"] for row in json.loads(capsys.readouterr().out)}
    assert states["responses/mean-colour-val"] == ["inputs.method: mean-colour@1 → mean-colour@2"]
    assert ris(*dump) == 0
    assert "runs (inputs.method: mean-colour@1 → mean-colour@2)" in capsys.readouterr().err
    with (tmp_path / "tiny.toml").open("a") as card:
        card.write("[config.mean-colour]\ncells = 4\n")
    assert ris(*dump) == 0
    assert "runs (configuration.mean-colour.cells: 8 → 4)" in capsys.readouterr().err


def test_step1_is_never_a_methods(ris, tmp_path):
    """What asks for Step-1's responses must not get another method's."""
    assert ris("dump-responses", "--method", "mean-colour", "--split", "val") == 0
    assert find_latest(tmp_path / "runs", "tiny", "responses", split="val") is None


def test_an_unknown_method_is_named(ris, capsys):
    assert ris("dump-responses", "--method", "mean-color") == 2
    assert "did you mean 'mean-colour'" in capsys.readouterr().err
    with pytest.raises(RisError, match="there is no method 'men-colour'; did you mean 'mean-colour'"):
        find_method("men-colour")


def test_the_fixture_finds_what_differs_from_the_mean():
    from mean_colour import MeanColour

    image = np.full((64, 64, 3), 200, np.uint8)
    image[:16, :16] = (220, 20, 20)
    responder = MeanColour(8)
    (encoded,) = responder.encode_images(to_pixels(image, 64)[None])
    grid = responder.respond(encoded, responder.encode_texts(["a", "b"]))
    assert grid.shape == (2, 8, 8)
    assert grid[0].argmax().item() in (0, 1, 8, 9)


@pytest.mark.parametrize("folder", FOLDERS)
def test_make_compare_runs_all_methods(folder):
    assert "experiment 1 " in (ROOT / "Makefile").read_text().partition("\ncompare:")[2].partition("\n\n")[0]
    scored = [entry.scored for entry in load_experiment("table1", folder).rows]
    assert sorted(scored) == sorted([method.name for method in list_compared()] + ["step1", "step2"])
