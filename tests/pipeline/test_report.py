"""`ris report` and `ris figure` on the tiny chain."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from calls import places_in
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.scoring.outcomes import load_outcomes

SAMPLES = 12


@pytest.fixture(scope="module")
def page(scored: Path, ris) -> str:
    ris(scored, "report", "--samples", SAMPLES)
    return (scored / "runs/tiny/report/latest/report.html").read_text(encoding="utf-8")


def cards_of(page: str) -> list[dict]:
    """Split, ids and scores of each card."""
    found = []
    for card in re.findall(r"<article.*?</article>", page, re.DOTALL):
        scores = json.loads(unescape(re.search(r'data-scores="(.*?)"', card).group(1)))
        ref_id, sent_id = (int(re.search(rf"<span>{word} (\d+)</span>", card).group(1)) for word in ("ref", "sentence"))
        split = re.search(r'data-split="(\w+)"', card).group(1)
        found.append({"split": split, "ref": ref_id, "sent": sent_id, "scores": scores, "text": card})
    return found


def test_the_gallery_shows_as_many_of_each_split_and_no_ref_twice(page):
    cards = cards_of(page)
    assert [card["split"] for card in cards].count("train") == SAMPLES // 2
    assert len({card["ref"] for card in cards}) == len(cards) == SAMPLES


@pytest.mark.parametrize("row", ["step1", "step2", "prms", "pseudo-refined"])
def test_the_scores_of_the_cards_are_those_of_ris_score(scored, page, row):
    compared = 0
    for split in ("train", "val"):
        path = scored / f"runs/tiny/scores/latest-{row}-{split}/outcomes.csv"
        if path.exists():
            key = "sent_id" if row in ("step1", "step2") else "ref_id"
            outcomes = {getattr(outcome, key): outcome for outcome in load_outcomes(path)}
            for card in cards_of(page):
                if card["split"] == split:
                    outcome, scores = outcomes[card["sent" if key == "sent_id" else "ref"]], card["scores"][row]
                    # Step-2 encodes images in other batches than the scores do: its rounding may differ.
                    assert scores["iou"] == pytest.approx(outcome.iou, abs=0.01 if row == "step2" else 1e-4)
                    if outcome.point_it is not None and row != "step2":
                        assert (scores["pointit"], scores["pointm"]) == (outcome.point_it, outcome.point_m)
                    compared += 1
    assert compared >= SAMPLES // 2


def test_each_stage_has_a_picture_and_a_split_without_labels_an_empty_tile(page):
    for card in cards_of(page):
        alts = re.findall(r'alt="([^"]*)"', card["text"])
        titles = [alt.partition(" for ")[0] for alt in alts]
        if card["split"] == "train":
            assert titles == ["Step-1 map", "PRMS choice", "Boundary", "Pseudo-label", "Step-2 mask", "Ground truth"]
        else:
            assert titles == ["Step-1 map", "PRMS choice", "Step-2 mask", "Ground truth"]
            assert card["text"].count("refinement is of train only") == 2


def test_scores_curves_and_stages_are_there(page):
    for word in (
        "Pseudo-labels, refined",
        "IRNet",
        "pseudolabels/refine",
        "Sentence length",
        "Objects of the same kind",
    ):
        assert word in page


def test_a_second_run_makes_nothing_and_copies_the_page(scored, ris, capsys, page):
    out = scored / "new" / "copy.html"
    ris(scored, "report", "--samples", SAMPLES, "--out", out)
    captured = capsys.readouterr()
    assert "report: up to date" in captured.err
    assert captured.out.strip() == str(out)
    assert out.read_text(encoding="utf-8") == page
    assert list(out.parent.iterdir()) == [out]


def test_a_stage_that_became_stale_is_shown_so(scored, ris, capsys):
    card = scored / "tiny.toml"
    before = card.read_text()
    card.write_text(before.replace("[config.step1]", "[config.step1]\nweight_cls = 4.0"))
    try:
        ris(scored, "report", "--samples", SAMPLES)
        assert "a stage was run again" in capsys.readouterr().err
        page = (scored / "runs/tiny/report/latest/report.html").read_text(encoding="utf-8")
        assert "configuration.weight_cls: 5.0 → 4.0" in page
    finally:
        card.write_text(before)


def test_one_split_and_no_samples(scored, ris):
    ris(scored, "report", "--split", "val", "--samples", 0)
    page = (scored / "runs/tiny/report/latest-val/report.html").read_text(encoding="utf-8")
    assert cards_of(page) == []
    assert "step2-val" in page


def test_a_compared_method_is_a_column(copy_of_project, ris):
    runs = copy_of_project / "runs"
    source = find_latest(runs, "tiny", "responses", split="val")
    with publish(Request(runs, "tiny", "responses", {}, {}, {"method": "amr", "split": "val"})) as work:
        shutil.copytree(source.path / "val.zarr", work.path / "val.zarr")
    ris(copy_of_project, "report", "--samples", 4)
    page = (copy_of_project / "runs/tiny/report/latest/report.html").read_text(encoding="utf-8")
    for card in cards_of(page):
        if card["split"] == "val":
            assert card["scores"]["amr"] == card["scores"]["step1"]  # its maps are Step-1's
        else:
            assert "amr" not in card["scores"]


def test_without_scores_all_samples_are_random(copy_of_project, ris):
    shutil.rmtree(copy_of_project / "runs" / "tiny" / "scores", ignore_errors=True)
    ris(copy_of_project, "report", "--samples", 6)
    page = (copy_of_project / "runs/tiny/report/latest/report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-drawn="(\w+)"', page)) == {"random"}
    assert "Nothing has been scored yet" in page


def test_without_any_artifact_the_next_command_is_named(copy_of_project, call_ris, capsys):
    assert call_ris("report", **{**places_in(copy_of_project), "runs": copy_of_project / "none"}) == 1
    assert re.search(r"no responses and no scores of train, val yet; run: ris dump-responses", capsys.readouterr().err)


@pytest.mark.parametrize(("kind", "suffix"), [("qualitative", "pdf"), ("curves", "pdf"), ("curves", "png")])
def test_figures(scored, ris, kind, suffix):
    out = scored / f"{kind}.{suffix}"
    ris(scored, "figure", kind, "--out", out)
    if suffix == "pdf":
        assert out.read_bytes().startswith(b"%PDF-")
    else:
        with Image.open(out) as picture:
            assert min(picture.size) > 100


def test_a_figure_of_chosen_refs_has_a_row_for_each(scored, ris, page):
    refs = [card["ref"] for card in cards_of(page)][:3]
    heights = []
    for chosen in (refs[:1], refs):
        out = scored / "chosen.png"
        ris(scored, "figure", "qualitative", "--out", out, *(word for ref in chosen for word in ("--ref", ref)))
        with Image.open(out) as picture:
            heights.append(picture.height)
    assert heights[1] > 2.4 * heights[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["qualitative", "--ref", "999", "--out", "a.png"],
            r"--ref 999: tiny has no such ref in train, val; the nearest",
        ),
        (["qualitative", "--out", "a.jpg"], r"a\.jpg: a figure is written as \.png or \.pdf; name it a\.pdf"),
        (["curves", "--ref", "1", "--out", "a.png"], r"--ref chooses the rows of `ris figure qualitative`"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(scored, call_ris, capsys, arguments, message):
    assert call_ris("figure", *arguments, **places_in(scored)) == 1
    error = capsys.readouterr().err.strip()
    assert re.search(message, error)
    assert "\n" not in error
