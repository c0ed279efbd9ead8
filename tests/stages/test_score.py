"""The score table of a data set of two images, whose maps and labels are drawn by hand."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from calls import Options, call, context_of
from ris_pipeline.artifacts.find import find, find_latest
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.layout import WEIGHTS
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.config import ScoreConfig, Step2Config
from ris_pipeline.datasets.io.labels import save_label
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import RESPONSE
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods import METHODS, Method
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import step2_from_config
from ris_pipeline.networks.weights.clip_weights import save_compact
from ris_pipeline.scoring.metrics import HEADLINE, Estimate
from ris_pipeline.scoring.outcomes import load_outcomes
from ris_pipeline.scoring.rows import find_row
from ris_pipeline.scoring.scores import Score
from stages import score
from tiny import TINY

CARD = 'name = "{name}"\nformat = "pairs"\nannotations = "tiny"\nimages = "tiny"\n[splits]\ntrain = 2\nval = 1\n'
LINES = [
    {"image": "a.png", "ref": "dog", "sentence": "the dog"},
    {"image": "a.png", "ref": "dog", "sentence": "dog on the left"},
    {"image": "b.png", "ref": "cat", "sentence": "the cat", "split": "val"},
]
LEFT = np.array([[1, 1, 0, 0]] * 4, np.uint8)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """A labelled data set: the dog is the left half of its image, the cat of hers."""
    write_data(tmp_path, {"box": [0, 0, 2, 4], "mask": "mask.png"})
    return Options(
        dataset=str(tmp_path / "tiny.toml"), data_root=tmp_path, runs=tmp_path / "runs", device="cpu", workers=0
    )


def write_data(root: Path, truth: dict, name: str = "tiny") -> None:
    folder = root / "tiny"
    folder.mkdir(exist_ok=True)
    for image in ("a.png", "b.png"):
        PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / image)
    PIL.Image.fromarray(LEFT).save(folder / "mask.png")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line | truth) + "\n" for line in LINES))
    (root / f"{name}.toml").write_text(CARD.format(name=name))


def request(options: Options, stage: str, configuration: dict, **flags) -> Request:
    return Request(options.runs, Path(options.dataset).stem, stage, configuration, {}, flags)


def make_responses(options: Options, split: str, grids: list, prms: bool = True, inputs=(), **flags) -> None:
    (ref,) = context_of(options).open_dataset(split).refs
    asked = dataclasses.replace(
        request(options, "responses", {"prms": prms}, split=split, **flags), inputs=dict(inputs)
    )
    with publish(asked) as work:
        store = ResponseStore.create(
            work.path / f"{split}.zarr",
            sent_id=[expression.sent_id for expression in ref.expressions],
            ref_id=[ref.ref_id] * len(grids),
            image_hw=[(4, 4)] * len(grids),
            grid_hw=(2, 2),
            rule=RESPONSE,
            input_size=4,
            attributes={},
        )
        store.write_block(0, np.array(grids, np.float32), np.arange(len(grids), dtype=np.float32))
        if prms:
            store.select_maps()


def make_labels(options: Options, refine: bool, label: np.ndarray) -> None:
    (ref,) = context_of(options).open_dataset("train").refs
    with publish(request(options, "pseudolabels", {}, refine=refine)) as work:
        save_label(work.path / f"{ref.ref_id}.png", label)


def make_step2(options: Options, folder: Path, labels: str, sign: float) -> None:
    """A Step-2 of random values whose logits all have the sign given."""
    folder.mkdir()
    torch.manual_seed(0)
    save_compact(Clip.from_config(TINY), folder / "model.safetensors", range(10))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    config = Step2Config(clip=str(folder), clip_weights=None, input_size=64)
    network = step2_from_config(config)
    with torch.no_grad():
        network.final_seg1[1].weight.fill_(sign)
        network.final_seg1[0].bn.weight.zero_()
        network.final_seg1[0].bn.bias.fill_(1)
    with publish(request(options, "step2", dataclasses.asdict(config), labels=labels)) as work:
        save_file(network.state_dict(), work.path / WEIGHTS)


def make_everything(options: Options, tmp_path: Path) -> None:
    left, right = [[4, -2]] * 2, [[-2, 4]] * 2
    make_responses(options, "train", [left, right])
    make_responses(options, "val", [left])
    make_labels(options, refine=False, label=1 - LEFT)
    make_labels(options, refine=True, label=LEFT)
    make_step2(options, tmp_path / "clip-a", "pseudo", 1.0)
    make_step2(options, tmp_path / "clip-b", "true", -1.0)


def run_score(options: Options, metric="all", splits=None, stage=None) -> None:
    call(score.run, options, metric=metric, split=splits, stage=stage)


def scores(options: Options, capsys, **arguments) -> list[dict]:
    """The rows that are printed as JSON."""
    run_score(dataclasses.replace(options, json=True, quiet=True), **arguments)
    return json.loads(capsys.readouterr().out)


def values(row: dict, *metrics: str) -> list[float]:
    return [row["metrics"][metric]["value"] for metric in metrics]


def test_all_that_is_there(options, tmp_path, capsys):
    make_everything(options, tmp_path)
    rows = {(row["scored"], row["split"]): row for row in scores(options, capsys)}
    assert list(rows) == [
        ("chance", "train"), ("step1", "train"), ("prms", "train"), ("pseudo-plain", "train"),
        ("pseudo-refined", "train"), ("chance", "val"), ("step1", "val"), ("prms", "val"), ("step2", "val"),
        ("step2-oracle", "val"),
    ]  # fmt: skip
    quality = ("miou", "oiou", "prec@0.5", "box_iou")
    assert values(rows["chance", "train"], *quality) == [50, 50, 100, 50]
    # One sentence has the left half, the other the right one, which PRMS selects.
    assert values(rows["step1", "train"], "pointit", "pointm", *quality) == [50, 50, 50, pytest.approx(100 / 3), 50, 50]
    assert values(rows["prms", "train"], "pointit", *quality) == [0] * 5
    assert values(rows["pseudo-plain", "train"], *quality) == [0] * 4
    assert values(rows["pseudo-refined", "train"], *quality) == [100] * 4
    assert values(rows["step1", "val"], "pointit", *quality) == [100] * 5
    # Foreground everywhere, and nowhere; equal logits point at (0, 0).
    assert values(rows["step2", "val"], "pointit", *quality) == [100, 50, 50, 100, 50]
    assert values(rows["step2-oracle", "val"], "pointit", *quality) == [100, 0, 0, 0, 0]
    assert "pointit" not in rows["pseudo-refined", "train"]["metrics"]
    assert rows["prms", "train"]["metrics"]["miou"]["n_expressions"] == 2


def test_the_artifact(options, tmp_path, capsys):
    make_everything(options, tmp_path)
    (row,) = scores(options, capsys, stage="step1", splits=["train"])
    artifact = find_latest(options.runs, "tiny", "scores", scored="step1", split="train")
    assert Path(row["path"]).resolve() == artifact.path
    stored = json.loads((artifact.path / "scores.json").read_text())
    assert stored["metrics"]["pointit"] | {"ci_low": 0, "ci_high": 0} == {
        "value": 50, "ci_low": 0, "ci_high": 0, "n_refs": 1, "n_expressions": 2,
    }  # fmt: skip
    assert (stored["dataset"], stored["scored"], stored["split"]) == ("tiny", "step1", "train")
    assert (stored["refs"], stored["sentences"]) == (1, 2)
    assert stored["configuration"]["bootstrap"] == 1000
    responses = find_latest(options.runs, "tiny", "responses", split="train")
    assert stored["inputs"]["responses/train"] == responses.digest
    outcomes = load_outcomes(artifact.path / "outcomes.csv")
    assert [(outcome.point_it, outcome.intersection, outcome.union) for outcome in outcomes] == [
        (True, 8, 8),
        (False, 0, 16),
    ]


def test_the_table_fits_and_is_made_once(options, tmp_path, capsys):
    make_everything(options, tmp_path)
    run_score(options, "all", None, None)
    first = capsys.readouterr()
    lines = first.out.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[1].split() == [
        "scored", "split", "supervision", "sentences", "pointit", "pointm", "miou", "oiou", "prec@0.5",
    ]  # fmt: skip
    (refined,) = (line for line in lines if "refined" in line)
    assert refined.split() == [
        "pseudo-refined", "train", "text", "2", "–", "–", "100.0", "±0.0", "100.0", "±0.0", "100.0", "±0.0",
    ]  # fmt: skip
    assert first.err.count("runs (nothing made yet)") == 10
    run_score(options, "all", None, None)
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.count("up to date") == 10


def test_precision_makes_other_scores_of_networks_alone(options, tmp_path, capsys):
    make_everything(options, tmp_path)
    single, half = (
        {row["scored"]: row["path"] for row in scores(dataclasses.replace(options, precision=precision), capsys)}
        for precision in ("fp32", "bf16")
    )
    assert {name for name in single if single[name] != half[name]} == {name for name in single if "step2" in name}
    assert {"chance", "step1", "prms", "step2"} <= single.keys()


def test_a_compared_method_is_one_row_more(options, capsys, monkeypatch):
    left, right = [[4, -2]] * 2, [[-2, 4]] * 2
    make_responses(options, "val", [left])
    make_responses(options, "val", [right], prms=False, method="amr")
    monkeypatch.setitem(METHODS, "amr", Method("amr", "AMR", "no.such.module", ScoreConfig, 1))
    rows = {row["scored"]: row for row in scores(options, capsys, splits=["val"])}
    assert values(rows["step1"], "pointit", "miou") == [100, 100]
    assert values(rows["amr"], "pointit", "miou") == [0, 0]


def test_new_responses_are_scored_anew(options, capsys):
    make_responses(options, "val", [[[4, -2]] * 2])
    (first,) = scores(options, capsys, stage="step1", splits=["val"])
    with publish(request(options, "responses", {"prms": False}, split="val")) as work:
        source = find_latest(options.runs, "tiny", "responses", split="val")
        (source.path / "val.zarr").rename(work.path / "val.zarr")
    (second,) = scores(options, capsys, stage="step1", splits=["val"])
    assert first["path"] != second["path"]


def test_what_is_missing_is_left_out(options, capsys):
    make_responses(options, "val", [[[4, -2]] * 2], prms=False)
    run_score(options, "miou", None, None)
    output = capsys.readouterr()
    rows = [line.split()[:2] for line in output.out.splitlines()[3:] if line.strip()]
    assert rows == [["chance", "train"], ["chance", "val"], ["step1", "val"]]
    assert "left out, not made yet: step1 train; run: ris dump-responses --split train" in output.err
    assert "left out, not made yet: prms val; run: ris dump-responses --split val --set prms=true" in output.err
    assert "pseudo-refined train; run: ris make-pseudolabels --refine" in output.err
    # As it has to be typed for these data, which are not the default ones.
    assert f"step2 val; run: ris train-step2 --dataset {options.dataset} --data-root " in output.err
    assert "oracle" not in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": "step1"}, r"tiny train: nothing of step1 to score yet; run: ris dump-responses --split train"),
        ({"stage": "step2"}, r"run: ris train-step2 --dataset .*tiny\.toml --data-root .* --runs"),
        ({"stage": "pseudolabels", "splits": ["val"]}, "pseudolabels is not scored on val"),
        ({"splits": ["vall"]}, "no split 'vall'"),
    ],
)
def test_what_is_asked_for_has_to_be_there(options, arguments, message):
    with pytest.raises(RisError, match=message):
        run_score(options, **arguments)


def test_step2_on_train_where_it_is_named(options, tmp_path, capsys):
    make_step2(options, tmp_path / "clip", "pseudo", 1.0)
    assert [row["split"] for row in scores(options, capsys, stage="step2")] == ["val"]
    assert [row["split"] for row in scores(options, capsys, stage="step2", splits=["train"])] == ["train"]


def test_metric_groups(options, capsys):
    (box,) = scores(options, capsys, metric="box", stage="chance", splits=["val"])
    assert list(box["metrics"]) == ["box_iou", "box@0.5"]
    (prec,) = scores(options, capsys, metric="prec", stage="chance", splits=["val"])
    assert list(prec["metrics"]) == ["prec@0.5", "prec@0.6", "prec@0.7", "prec@0.8", "prec@0.9"]


def test_a_metric_that_no_row_has(options, tmp_path, capsys):
    make_labels(options, refine=True, label=LEFT)
    with pytest.raises(RisError, match="a pseudo-label is a mask and has no point"):
        run_score(options, "pointit", ["train"], "pseudolabels")
    write_data(tmp_path, {"box": [0, 0, 2, 4]})
    with pytest.raises(RisError, match="miou needs masks, and this dataset has none"):
        run_score(options, "miou", None, "chance")
    (row,) = scores(options, capsys, stage="chance", splits=["val"])
    assert list(row["metrics"]) == ["pointit", "box_iou", "box@0.5"]


def test_boxes_alone_give_a_table_of_boxes(options, tmp_path, capsys):
    write_data(tmp_path, {"box": [0, 0, 2, 4]})
    run_score(options, "all", ["val"], "chance")
    header = capsys.readouterr().out.splitlines()[1]
    assert header.split() == ["scored", "split", "sentences", "pointit", "box_iou", "box@0.5"]


def test_without_ground_truth_nothing_is_scored(options, tmp_path, capsys):
    write_data(tmp_path, {})
    run_score(options, "all", None, None)
    output = capsys.readouterr()
    assert output.out == ""
    assert "tiny train, val: no ref has a box or a mask" in output.err
    assert not options.runs.exists()
    assert scores(options, capsys) == []


def test_the_cards_oracle_stands_in_for_one_that_was_not_made(options, tmp_path, capsys):
    make_responses(options, "val", [[[4, -2]] * 2])
    make_step2(options, tmp_path / "clip-a", "pseudo", 1.0)
    card = Path(options.dataset)
    card.write_text(card.read_text() + "[oracle.val]\npointit = [81.3, 79, 83.6]\n")
    run_score(options, "all", ["val"], None)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "oracle" in line)
    assert line.split() == [
        "oracle,", "stored", "val", "boxes", "or", "masks", "1", "81.3", "±2.3", "–", "–", "–", "–",
    ]  # fmt: skip
    make_step2(options, tmp_path / "clip-b", "true", -1.0)
    assert [row["scored"] for row in scores(options, capsys, stage="step2", splits=["val"])] == [
        "step2",
        "step2-oracle",
    ]


def test_the_supervision_stands_beside_what_is_not_of_text_alone(options, tmp_path, capsys):
    make_responses(options, "val", [[[4, -2]] * 2])
    make_step2(options, tmp_path / "clip-a", "pseudo", 1.0)
    run_score(options, "miou", ["val"], None)
    assert "supervision" not in capsys.readouterr().out
    make_step2(options, tmp_path / "clip-b", "true", -1.0)
    run_score(options, "miou", ["val"], None)
    header, _, *lines = capsys.readouterr().out.splitlines()[1:]
    assert header.split()[:4] == ["scored", "split", "supervision", "sentences"]
    assert [line.split()[2] for line in lines] == ["text", "text", "text", "text", "boxes"]
    rows = scores(options, capsys, splits=["val"])
    assert [row["supervision"] for row in rows] == ["text"] * 4 + ["boxes or masks"]


def test_an_epoch_chosen_by_the_truth_is_supervision_of_all_that_is_made_of_it(options, capsys):
    chosen = request(options, "step1", {"validate": "val", "select": "miou"})
    with publish(chosen):
        pass
    make_responses(options, "val", [[[4, -2]] * 2], inputs={"step1": find(chosen).digest})
    assert [row["supervision"] for row in scores(options, capsys, splits=["val"])] == [
        "text", "boxes or masks", "boxes or masks",
    ]  # fmt: skip


def test_small_boxes_are_left_out(options, tmp_path, capsys):
    changed = dataclasses.replace(options, set=["skip_small_boxes=0.5"])
    with pytest.raises(RisError, match="no box covers more than 50%"):
        scores(changed, capsys, stage="chance", splits=["val"])


def test_the_papers_figures_stand_beside_ours(options, tmp_path, capsys):
    write_data(tmp_path, {"box": [0, 0, 2, 4], "mask": "mask.png"}, name="refcoco")
    options = dataclasses.replace(options, dataset=str(tmp_path / "refcoco.toml"))
    make_responses(options, "val", [[[4, -2]] * 2])
    run_score(options, "all", ["val"], None)
    lines = capsys.readouterr().out.splitlines()
    assert "pointit paper pointm" in " ".join(lines[1].split())
    (step1,) = (line for line in lines if "step1" in line)
    assert step1.split()[3:6] == ["100.0", "±0.0", "60.95"]  # Table 1
    (row,) = scores(options, capsys, stage="step1", splits=["val"])
    assert row["paper"] == {"pointit": 60.95}


def test_the_widest_tables_fit():
    figure = Estimate(74.94, 64.0, 84.0, 9, 120624)
    paper = {"pointit": 72.56, "pointm": 61.70, "miou": 33.33}
    row = Score(find_row("pseudo-refined"), "testA", 120624, dict.fromkeys(HEADLINE, figure), paper)
    lines = score.render_scores([row], HEADLINE[:5]).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[-1].split()[3:] == [
        "74.9", "±10.0", "72.56", "74.9", "±10.0", "61.70", "74.9", "±10.0", "33.33", "74.9", "±10.0", "74.9", "±10.0",
    ]  # fmt: skip
    # The data sets with sentences about nothing are none of the paper's; mRR and rIoU stand for N-acc and T-acc.
    row = Score(find_row("pseudo-refined"), "testA", 120624, dict.fromkeys(HEADLINE, figure))
    assert max(map(len, score.render_scores([row], HEADLINE[:7]).splitlines())) <= 120


def test_dry_run_makes_nothing(options, capsys):
    run_score(dataclasses.replace(options, dry_run=True), "all", None, None)
    output = capsys.readouterr()
    assert output.out == ""
    assert "scores chance val: would run (nothing made yet)" in output.err
    assert not options.runs.exists()


def test_what_is_done_is_shown_without_torch(options, capsys):
    scores(options, capsys, stage="chance")
    code = "import sys; from stages.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    places = ["--dataset", options.dataset, "--data-root", str(options.data_root), "--runs", str(options.runs)]
    done = subprocess.run(
        [sys.executable, "-c", code, "score", "--stage", "chance", *places],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "chance" in done.stdout


def test_a_part_of_a_split_is_marked_and_not_set_beside_the_paper(options, tmp_path, capsys):
    """Like the real sample: a card of RefCOCO's name and numbers over two sentences."""
    write_data(tmp_path, {"box": [0, 0, 2, 4], "mask": "mask.png"}, name="refcoco")
    card = tmp_path / "refcoco.toml"
    card.write_text(re.sub(r"val = \d+", "val = 10834", card.read_text()))
    options = dataclasses.replace(options, dataset=str(card))
    make_responses(options, "val", [[[4, -2]] * 2])
    run_score(dataclasses.replace(options, json=True), "all", ["val"], None)
    rows = json.loads(capsys.readouterr().out)
    n = rows[0]["sentences"]
    assert all(row["partial"] == {"sentences": n, "expected": 10834} and row["paper"] == {} for row in rows)
    run_score(options, "all", ["val"], None)
    text = capsys.readouterr().out
    assert "paper" not in text
    assert "step1*" in text
    assert f"* partial: {n} of the 10,834 sentences of val" in text


def test_a_row_of_something_stale_is_marked(options, capsys):
    """The responses are of a Step-1 that is no longer the latest."""
    for seed in (0, 1):
        with publish(dataclasses.replace(request(options, "step1", {}), seed=seed)):
            pass
    first, second = (find(dataclasses.replace(request(options, "step1", {}), seed=seed)) for seed in (0, 1))
    make_responses(options, "val", [[[4, -2]] * 2], inputs={"step1": first.digest})
    run_score(options, "miou", ["val"], "step1")
    output = capsys.readouterr().out
    assert "step1†" in output
    assert f"† step1 val is stale: inputs.step1: {first.digest} → {second.digest}" in output
    assert "stale" not in scores(options, capsys, stage="chance", splits=["val"])[0]


def test_a_warning_says_that_half_of_the_maps_are_empty(options, capsys):
    make_responses(options, "val", [[[-4, -2]] * 2])
    run_score(options, "miou", ["val"], "step1")
    assert "warning: score step1 val: 1 of 1 masks are empty" in capsys.readouterr().err


def test_a_column_says_what_it_was_counted_on_where_that_is_not_all():
    metrics = {"miou": Estimate(50.0, 40.0, 60.0, 3, 6)}
    for n_sentences, cell in ((8, "50.0 ±10.0 (n=6)"), (6, "50.0 ±10.0")):
        lines = score.render_scores([Score(find_row("step1"), "val", n_sentences, metrics)], ["miou"]).splitlines()
        assert lines[-1].endswith(f" {cell}")


def test_a_split_of_the_card_that_the_data_lack_is_passed_over(options, capsys):
    card = Path(options.dataset)
    card.write_text(card.read_text().replace("[splits]\n", "[splits]\ntestA = 5\n"))
    run_score(options, "miou", None, "chance")
    output = capsys.readouterr()
    assert "tiny testA: the data hold nothing of this split" in output.err
    rows = [line.split()[:2] for line in output.out.splitlines()[3:] if line.strip()]
    assert rows == [["chance", "train"], ["chance", "val"]]
    with pytest.raises(RisError, match="no refs in the split 'testA'"):
        run_score(options, "miou", ["testA"], "chance")
