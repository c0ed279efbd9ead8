"""The whole chain on a tiny generated data set: every stage for real, one epoch, by the commands a user types."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calls import places_in
from ris_pipeline.chain.context import Context
from ris_pipeline.maps.store import ResponseStore


def latest(root: Path, stage: str, label: str = "") -> Path:
    return root / "runs" / "tiny" / stage / (f"latest-{label}" if label else "latest")


def refs_of(root: Path, split: str) -> list[dict]:
    import pickle

    refs = pickle.loads((root / "data/tiny/refer/shapes/refs(shapes).p").read_bytes())
    return [ref for ref in refs if ref["split"] == split]


def test_every_sentence_has_a_finite_grid_and_every_ref_one_selected_map(project):
    for split in ("train", "val"):
        store = ResponseStore.open(latest(project, "responses", split) / f"{split}.zarr")
        sent_ids = [sent_id for ref in refs_of(project, split) for sent_id in ref["sent_ids"]]
        assert sorted(store.sent_id.tolist()) == sorted(sent_ids)
        assert np.isfinite(store.read_grids(range(len(store)))).all()
        assert store.selected_rows.sum() == len(refs_of(project, split))


@pytest.mark.parametrize("label", ["refine", "no-refine"])
def test_each_train_ref_has_a_pseudo_label_of_its_images_size(project, label):
    folder = latest(project, "pseudolabels", label)
    for ref in refs_of(project, "train"):
        with (
            Image.open(folder / f"{ref['ref_id']}.png") as png,
            Image.open(project / "data/tiny/images" / f"{ref['image_id']:06d}.jpg") as image,
        ):
            assert png.size == image.size
            assert set(np.unique(np.array(png))) <= {0, 1, 255}
    with Image.open(folder / "contact-sheet.png") as sheet:  # a label itself looks black
        assert sheet.mode == "RGB"
        assert np.array(sheet).mean() > 50


def test_scores_are_printed_for_every_stage(copy_of_project, ris, capsys):
    ris(copy_of_project, "score", "--json")
    scored = {(row["scored"], row["split"]) for row in json.loads(capsys.readouterr().out)}
    assert {("step1", "train"), ("prms", "train"), ("step2", "val"), ("chance", "val")} <= scored
    assert {("pseudo-plain", "train"), ("pseudo-refined", "train")} <= scored


def test_a_second_run_does_nothing_and_says_why(project, ris, chain, capsys):
    before = {path: path.stat().st_mtime_ns for path in project.glob("runs/tiny/*/*/manifest.json")}
    for command in chain:
        ris(project, *command)
    assert {path: path.stat().st_mtime_ns for path in project.glob("runs/tiny/*/*/manifest.json")} == before
    assert capsys.readouterr().err.count("up to date") == len(chain) + 1  # two splits are dumped


@pytest.mark.slow
def test_what_another_process_makes_after_the_look_is_not_made_again(copy_of_project, ris, chain, capsys, monkeypatch):
    """The other process is the same command, which is begun and ended between the first one's look and its lock."""
    is_due, held = Context.is_due, []

    def look_and_be_overtaken(context, request, why=""):
        due = is_due(context, request, why)
        if due and not held:
            held.append(request)
            ris(copy_of_project, *command)
            times.update((path, path.stat().st_mtime_ns) for path in request.path.parent.glob("*/manifest.json"))
        return due

    monkeypatch.setattr(Context, "is_due", look_and_be_overtaken)
    for words in (*chain, ["score"], ["report"]):
        command = [*words, "--seed", "1"] if words[0] == "train-step1" else words  # all that follows is due then
        held.clear()
        times: dict[Path, int] = {}
        capsys.readouterr()
        ris(copy_of_project, *command)
        assert held, command
        assert words == ["report"] or "up to date, another process has just made" in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in times} == times


def test_another_lambda_reruns_step1_and_what_reads_it_and_nothing_else(copy_of_project, ris, chain, capsys):
    before = {path.parent for path in copy_of_project.glob("runs/tiny/*/*/manifest.json")}
    config = copy_of_project / "lambda.toml"
    config.write_text("[step1]\nweight_cls = 4\n")
    ris(copy_of_project, "data", "make-shapes", "--config", str(config))
    assert "tiny: up to date" in capsys.readouterr().err
    for command in chain:
        ris(copy_of_project, *command, "--config", str(config))
    reasons = capsys.readouterr().err
    assert "step1: runs (configuration.weight_cls: 5.0 → 4.0)" in reasons
    assert reasons.count("configuration.") == 1  # for all others an input has changed, and only that
    assert reasons.count("runs (inputs.step1:") == 2  # two splits are dumped
    assert reasons.count("runs (inputs.responses/train:") == 2
    assert reasons.count("runs (inputs.pseudolabels/refine:") == 1
    for command in chain:  # back to the first λ: all is still there
        ris(copy_of_project, *command)
    assert capsys.readouterr().err.count("up to date") == len(chain) + 1
    assert before < {path.parent for path in copy_of_project.glob("runs/tiny/*/*/manifest.json")}


@pytest.mark.slow
def test_a_copied_card_with_a_seed_of_its_own_runs_the_whole_chain(project, chain, call_ris, tmp_path):
    card = (project / "tiny.toml").read_text().replace('"tiny', '"mine').replace("seed = 0", "seed = 11")
    (tmp_path / "mine.toml").write_text(card)
    places = {**places_in(tmp_path), "dataset": tmp_path / "mine.toml"}
    for command in (["data", "make-shapes"], ["data", "check"], *chain, ["score"], ["report"]):
        assert call_ris(*command, **places, debug=True) == 0, command
    refs, made = Path("refer/shapes/refs(shapes).p"), tmp_path / "data" / "mine"
    assert (made / refs).read_bytes() != (project / "data" / "tiny" / refs).read_bytes()
    assert {path.parent.parent.name for path in (tmp_path / "runs" / "mine").glob("*/*/manifest.json")} == {
        "step1", "responses", "pseudolabels", "step2", "scores", "report",
    }  # fmt: skip


def test_predict_writes_mask_overlay_and_map(project, ris, tmp_path):
    image = next((project / "data/tiny/images").glob("*.jpg"))
    ris(project, "predict", str(image), "the red star", "left circle", "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 6


def test_prms_is_one_flag_away(project, ris, capsys):
    ris(project, "dump-responses", "--split", "val", "--no-prms", "--dry-run")
    assert "prms: True → False" in capsys.readouterr().err
