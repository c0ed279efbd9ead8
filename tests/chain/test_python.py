"""The chain from Python: the same artifacts, caching and resuming as by the commands."""

import json
from pathlib import Path

import numpy as np
import pytest

import ris_pipeline
from calls import places_in
from ris_pipeline import Segmenter, dump_responses, make_pseudolabels, score, train_step1, train_step2
from ris_pipeline.artifacts.publish import withdraw
from ris_pipeline.chain.context import open_context
from ris_pipeline.config import Step1Config
from ris_pipeline.errors import RisError


@pytest.fixture(scope="module")
def places(tmp_path_factory, write_tiny_card, call_ris):
    """Folders of a small generated data set; its card is `card`."""
    root = tmp_path_factory.mktemp("python")
    card = write_tiny_card(root, train=6, val=2)
    places = {"data_root": root / "data", "runs": root / "runs"}
    assert call_ris("data", "make-shapes", **places_in(root)) == 0
    return card, {**places, "device": "cpu", "workers": 0, "quiet": True}


def test_the_whole_chain(places, call_ris, capsys):
    card, folders = places
    step1 = train_step1(card, {"epochs": 1}, **folders)
    responses = dump_responses(card, **folders)
    labels = make_pseudolabels(card, **folders)
    step2 = train_step2(card, **folders)
    scores = score(card, splits=["val"], **folders)
    assert list(responses) == ["train", "val"]
    assert responses["val"].manifest["inputs"]["step1"] == step1.digest
    assert step2.manifest["inputs"]["pseudolabels/refine"] == labels.digest
    assert [row.row.name for row in scores] == ["chance", "step1", "prms", "step2"]
    assert 0 <= scores[-1].metrics["miou"].value <= 100

    # The commands find what was made here, and make nothing again.
    capsys.readouterr()
    for command in ("train-step1", "dump-responses", "make-pseudolabels", "train-step2"):
        assert call_ris(command, **places_in(card.parent)) == 0
    output = capsys.readouterr()
    assert output.err.count("up to date") == 5
    assert str(step2.path) in output.out.splitlines()

    found = Segmenter.load(step2.path, "cpu")(np.zeros((20, 30, 3), np.uint8), "the red circle")
    assert found.mask.shape == (20, 30)


def test_what_is_made_is_not_made_again(places):
    card, folders = places
    first = train_step1(card, {"epochs": 1}, **folders)
    finished = first.manifest["finished"]
    assert train_step1(card, {"epochs": 1}, **folders).manifest["finished"] == finished
    other = train_step1(open_context(card, **folders), {"epochs": 2})
    assert other.digest != first.digest
    assert other.manifest["configuration"]["epochs"] == 2


def test_labels_beyond_the_paper_are_another_artifact_of_the_same_responses(places):
    """Drawn sentences ask the network that made the responses, whatever Step-1 was asked for last."""
    card, folders = places
    train_step1(card, {"epochs": 1}, **folders)
    responses = dump_responses(card, **folders)["train"]
    paper = make_pseudolabels(card, **folders)
    train_step1(card, {"epochs": 2}, **folders)
    options = {"combine": "mean", "compete": True, "rivals": 4, "crf": True, "pieces": True}
    beyond = make_pseudolabels(card, options, **folders)
    assert beyond.manifest["inputs"] == paper.manifest["inputs"]
    assert beyond.manifest["configuration"] == {**paper.manifest["configuration"], **options}
    assert beyond.manifest["counts"]["refs"] == paper.manifest["counts"]["refs"]

    network = responses.path.parents[1] / "step1" / responses.manifest["inputs"]["step1"]
    network.rename(network.with_name("elsewhere"))
    with pytest.raises(RisError, match=r"step1/\w{12}: the network that made responses/train is gone"):
        make_pseudolabels(card, {**options, "rivals": 5, "pieces": False}, **folders)
    with pytest.raises(RisError, match="pieces = true: the Step-1 behind these labels is not there"):
        make_pseudolabels(card, {"pieces": True}, **folders)
    network.with_name("elsewhere").rename(network)


def test_later_rounds_are_artifacts_of_their_own_and_scored(places):
    card, folders = places
    train_step1(card, {"epochs": 1}, **folders)
    dump_responses(card, **folders)
    first = make_pseudolabels(card, **folders)
    teacher = train_step2(card, **folders)
    options = {"compete": True, "crf": True, "pieces": True}
    labels = make_pseudolabels(card, options, round=2, **folders)
    assert labels.name == "pseudolabels/round-2"
    assert labels.manifest["inputs"]["step2/pseudo"] == teacher.digest
    assert 0 <= labels.manifest["counts"]["agreement_per_mille"] <= 1000
    step2 = train_step2(card, round=2, **folders)
    assert step2.name == "step2/pseudo-round-2"
    assert step2.manifest["inputs"]["pseudolabels/round-2"] == labels.digest
    names = {(row.row.name, row.split) for row in score(card, stage="pseudolabels", **folders)}
    assert {("pseudo-refined", "train"), ("pseudo-round2", "train")} <= names
    names = [row.row.name for row in score(card, stage="step2", splits=["val"], **folders)]
    assert names == ["step2", "step2-round2"]
    # The first round is what it was.
    assert make_pseudolabels(card, **folders).manifest == first.manifest
    assert train_step2(card, **folders).manifest == teacher.manifest

    # A run that broke off goes on with the labels that it lacks.
    before = {path.name: path.read_bytes() for path in labels.path.glob("*.png")}
    gone, *kept = sorted(name for name in before if name[0].isdigit())
    withdraw(labels.path, [gone])
    untouched = {name: (labels.path.with_suffix(".partial") / name).stat().st_mtime_ns for name in kept}
    again = make_pseudolabels(card, options, round=2, **folders)
    assert again.manifest["resumed"] is True
    assert {path.name: path.read_bytes() for path in again.path.glob("*.png")} == before
    assert {name: (again.path / name).stat().st_mtime_ns for name in kept} == untouched

    for wrong in ({"refine": True}, {"method": "gbs"}):
        with pytest.raises(RisError, match="--round"):
            make_pseudolabels(card, round=2, **wrong, **folders)
    for wrong in ({"oracle": True}, {"proposals": True}, {"method": "gbs"}):
        with pytest.raises(RisError, match="--round"):
            train_step2(card, round=2, **wrong, **folders)
    with pytest.raises(RisError, match="--proposals"):
        train_step2(card, oracle=True, proposals=True, **folders)
    with pytest.raises(RisError, match="run: ris make-pseudolabels --proposals FOLDER"):
        train_step2(card, proposals=True, **folders)
    with pytest.raises(RisError, match="run: ris make-pseudolabels --round 3"):
        train_step2(card, round=3, **folders)


def test_a_whole_configuration_stands_as_it_is(places, tiny_clip):
    card, folders = places
    config = Step1Config(
        clip=str(tiny_clip), clip_weights=None, aux_clip=str(tiny_clip), aux_weights=None, input_size=64, hidden=16,
        epochs=1, batch_size=3,
    )  # fmt: skip
    artifact = train_step1(card, config, **folders)
    assert artifact.manifest["configuration"]["refs_per_image"] == 1  # not the card's 3
    assert json.loads((artifact.path / "manifest.json").read_text())["chosen"]["batch_size"] == 3


def test_bad_settings_are_one_clear_error(places):
    card, folders = places
    with pytest.raises(RisError, match=r"unknown key 'epoch'.*did you mean 'epochs'"):
        train_step1(card, {"epoch": 1}, **folders)
    with pytest.raises(RisError, match="there is no data set 'shape'; did you mean 'shapes'"):
        train_step1("shape", **folders)
    with pytest.raises(RisError, match="no finished step1 yet; run: ris train-step1"):
        dump_responses(card, **{**folders, "runs": Path("nowhere")})


def test_what_the_package_offers_is_there():
    for name in ris_pipeline.__all__:
        assert callable(getattr(ris_pipeline, name))
