"""Experiments on the tiny chain: what is shared, skipped, resumed, spread, and what the table says of it."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calls import places_in

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "real-sample" / "coco"
TWO_RATES = """
title = "two rates"
columns = ["tiny/train miou", "tiny/val miou", "tiny/val pointit"]

[[rows]]
name = "as it is"
scored = "step1"

[[rows]]
name = "ten times"
scored = "step1"
set = { step1 = { lr = 5e-4 } }

[[rows]]
name = "labels"
scored = "pseudo-plain"
together = true
"""
ROWS = ("as it is", "labels", "ten times")  # in the order of their groups


@pytest.fixture
def own(copy_of_project: Path) -> Path:
    """The chain's artifacts, not scored, and an experiment beside them."""
    (copy_of_project / "own.toml").write_text(TWO_RATES)
    return copy_of_project


@pytest.fixture
def call(own: Path, call_ris: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """A function that runs a command on the project and returns the lines that it printed."""

    def run(*words: object, code: int = 0) -> list[str]:
        capsys.readouterr()
        assert call_ris(words[0], own / "own.toml", *words[1:], **places_in(own)) == code, words
        return capsys.readouterr().out.splitlines()

    return run


def list_artifacts(project: Path, stage: str) -> set[str]:
    return {path.name for path in (project / "runs" / "tiny" / stage).glob("[0-9a-f]" * 12)}


def read_table(call: Callable[..., list[str]], *words: object) -> dict[str, dict[str, float]]:
    (line,) = call("table", "--json", *words)
    return {
        row["row"]: {column: cell["value"] for column, cell in row["here"].items()} for row in json.loads(line)["rows"]
    }


def start(project: Path, *words: object) -> subprocess.Popen[str]:
    places = [word for name, value in places_in(project).items() for word in (f"--{name.replace('_', '-')}", value)]
    line = [sys.executable, "-m", "stages.cli", "experiment", project / "own.toml", *words, *places]
    return subprocess.Popen(
        list(map(str, line)), cwd=ROOT, text=True, stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(ROOT)), start_new_session=True,
    )  # fmt: skip


def count_made(processes: Sequence[subprocess.Popen[Any]], project: Path) -> dict[Path, int]:
    """Wait for the processes, and return how often the manifest of each artifact has appeared meanwhile."""
    seen: dict[Path, set[int]] = {}
    while True:
        ended = all(process.poll() is not None for process in processes)
        for path in (project / "runs" / "tiny").glob(f"*/{'[0-9a-f]' * 12}/manifest.json"):
            with suppress(FileNotFoundError):  # it is just being replaced
                seen.setdefault(path, set()).add(path.stat().st_mtime_ns)
        if ended:
            return {path: len(times) for path, times in seen.items()}
        time.sleep(0.02)


def test_rows_are_made_once_and_share_what_is_equal(own, call):
    before = {stage: list_artifacts(own, stage) for stage in ("step1", "responses", "pseudolabels")}
    assert call("experiment") == [f"{row}, tiny, seed 0: made" for row in ROWS]  # group by group
    after = {stage: list_artifacts(own, stage) for stage in before}
    assert {stage: len(after[stage] - before[stage]) for stage in before} == {
        "step1": 1, "responses": 2, "pseudolabels": 0,
    }  # fmt: skip
    (new,) = after["step1"] - before["step1"]
    manifest = json.loads((own / "runs" / "tiny" / "step1" / new / "manifest.json").read_text())
    assert manifest["configuration"]["lr"] == 5e-4
    made = {path: path.stat().st_mtime_ns for path in (own / "runs").rglob("manifest.json")}
    assert call("experiment") == [f"{row}, tiny, seed 0: there already" for row in ROWS]
    assert {path: path.stat().st_mtime_ns for path in (own / "runs").rglob("manifest.json")} == made


def test_the_table_has_the_scores_of_each_rows_own_artifacts(own, call):
    assert set(map(str, read_table(call))) == set(ROWS)
    assert read_table(call) == {row: {} for row in ROWS}
    call("experiment", "--seeds", "0,1")
    by_hand: dict[tuple[str, str], list[float]] = {}
    for folder in (own / "runs" / "tiny" / "scores").glob("[0-9a-f]" * 12):
        scores = json.loads((folder / "scores.json").read_text())
        responses = next((value for name, value in scores["inputs"].items() if name.startswith("responses")), "")
        step1 = ""
        if responses:
            path = own / "runs" / "tiny" / "responses" / responses / "manifest.json"
            step1 = json.loads(path.read_text())["inputs"]["step1"]
            path = own / "runs" / "tiny" / "step1" / step1 / "manifest.json"
            rate = json.loads(path.read_text())["configuration"]["lr"]
            row = {5e-5: "as it is", 5e-4: "ten times"}[rate]
        else:
            row = "labels"
        by_hand.setdefault((row, f"tiny/{scores['split']} miou"), []).append(scores["metrics"]["miou"]["value"])
    table = read_table(call, "--seeds", "0,1")
    assert len(by_hand) == 5
    for (row, column), values in by_hand.items():
        assert len(values) == 2
        assert table[row][column] == pytest.approx(statistics.fmean(values))
    every = read_table(call, "--seeds", "0,1", "--metric", "all")
    names = ["pointit", "pointm", "miou", "oiou", *(f"prec@0.{k}" for k in (5, 6, 7, 8, 9)), "box_iou", "box@0.5"]
    assert list(every["as it is"]) == [f"tiny/{split} {name}" for split in ("train", "val") for name in names]
    assert set(every["labels"]) == {
        f"tiny/train {name}" for name in names if "point" not in name
    }  # a mask has no point
    assert {row: {column: every[row][column] for column in cells} for row, cells in table.items()} == table
    call("table", "--seeds", "0,1", "--metric", "n_acc", code=1)  # which shapes have no sentences for
    (line,) = call("table", "--json", "--seeds", "0,1")
    cell = json.loads(line)["rows"][1]["here"]["tiny/val miou"]
    assert cell["spread"] == pytest.approx(statistics.stdev(by_hand["ten times", "tiny/val miou"]))
    assert cell["n_seeds"] == 2
    assert any("over 2 seeds" in text for text in call("table", "--seeds", "0,1"))


def test_a_dry_run_says_what_would_run_first_and_why(own, call):
    def look() -> dict[str, str]:
        lines = map(json.loads, call("experiment", "--dry-run", "--json"))
        return {line["point"].split(",")[0]: line["why"] for line in lines}

    why = look()
    assert why["as it is"].startswith("scores step1 train: would run (nothing made yet")
    assert why["ten times"] == "step1: would run (configuration.lr: 5e-05 → 0.0005)"
    folder = own / "runs" / "tiny" / "step1"
    before = list_artifacts(own, "step1")
    call("experiment", "--only", "1")
    (new,) = list_artifacts(own, "step1") - before
    (folder / new).rename(folder / f"{new}.partial")
    shutil.rmtree(own / "runs" / "tiny" / "scores")
    assert look()["ten times"] == f"step1: would run (an earlier run broke off: resuming {new}.partial)"
    (folder / f"{new}.partial").rename(folder / new)
    call("experiment")
    assert look() == dict.fromkeys(ROWS, "")
    assert call("experiment", "--dry-run")[0] == "as it is, tiny, seed 0: 2 of 2 splits scored"


def test_a_dry_run_says_what_it_has_cost(own, call_ris, capsys):
    (own / "own.toml").write_text(f'cost = "0.2 hours on a CPU"{TWO_RATES}')
    assert call_ris("experiment", own / "own.toml", "--dry-run", **places_in(own)) == 0
    assert "cost of own: 0.2 hours on a CPU" in capsys.readouterr().err.splitlines()


def test_what_the_next_command_reads_stays_what_it_was(own, call):
    links = {path: path.readlink() for path in (own / "runs" / "tiny").glob("*/latest*")}
    assert {path.parent.name for path in links} >= {"step1", "responses", "pseudolabels"}
    call("experiment")
    assert {path: path.readlink() for path in links} == links


def test_a_group_that_is_not_there_and_nothing_to_submit(own, call, capsys, tmp_path):
    call("experiment", "--only", "2", code=1)
    call("experiment")
    script = tmp_path / "array.sh"
    assert call("experiment", "--slurm", script) == ["all is there already"]
    assert not script.exists()


def test_a_failing_row_stops_no_other(own, call):
    path = own / "own.toml"
    path.write_text(TWO_RATES.replace("lr = 5e-4", 'image_encoder = "nonesuch"'))
    lines = call("experiment", code=1)
    assert [line.split(": ")[1] for line in lines] == ["made", "made", "failed"]
    (failed,) = (line for line in lines if "failed" in line)
    assert "nonesuch" in failed
    assert "ten times" in failed


def test_a_part_of_a_split_is_marked_and_never_best(own, call):
    card = own / "tiny.toml"
    n_val = sum(len(ref["sentences"]) for ref in load_refs(own) if ref["split"] == "val")
    card.write_text(card.read_text().replace('val = "any"', f"val = {n_val + 1}"))
    path = own / "own.toml"
    path.write_text(
        path.read_text().replace(
            '"step1"\n\n[[rows]]\nname = "ten', '"step1"\npaper = [nan, 31.5, nan]\n\n[[rows]]\nname = "ten'
        )
    )
    call("experiment")
    text = call("table", "--format", "markdown")
    row = next(line for line in text if line.startswith("| as it is"))
    train, val, paper, *_ = (cell.strip() for cell in row.split("|")[2:])
    assert "*" not in train.replace("**", "")
    assert re.fullmatch(r"\d+\.\d ±\d+\.\d\*", val)
    assert paper == "31.5"
    assert any("partial" in line for line in text)


def load_refs(project: Path) -> list[dict]:
    from ris_pipeline.datasets.io.pickles import load_plain_pickle

    (path,) = (project / "data" / "tiny" / "refer" / "shapes").glob("refs*.p")
    return load_plain_pickle(path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_jobs_and_a_slurm_array_make_the_same_table(own, call, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(own, other, symlinks=True)
    call("experiment")
    expected = read_table(call)
    process = start(other, "--jobs", 2)
    out, _ = process.communicate(timeout=300)
    assert sorted(out.splitlines()) == sorted(f"{row}, tiny, seed 0: made" for row in ROWS)
    assert process.returncode == 0
    shutil.rmtree(other)
    shutil.copytree(own, other, symlinks=True)
    shutil.rmtree(other / "runs" / "tiny" / "scores")
    script = other / "array.sh"
    out, _ = start(other, "--slurm", script).communicate(timeout=300)
    assert "2 of 2 groups" in out
    run_array(script, other)
    assert read_table_of(other) == expected
    run_array(script, other)  # submitted again
    assert read_table_of(other) == expected
    made = {stage: list_artifacts(other, stage) for stage in ("responses", "scores")}
    for stage in made:
        shutil.rmtree(other / "runs" / "tiny" / stage)
    run_array(script, other, n_times=2)
    assert read_table_of(other) == expected
    assert {stage: list_artifacts(other, stage) for stage in made} == made


def run_array(script: Path, project: Path, n_times: int = 1) -> None:
    """What sbatch does: each task of the array with its number, all of them at once; nothing is made twice by them.

    `n_times`: as often the script is submitted at the same time.
    """
    last = int(re.search(r"--array=0-(\d+)", script.read_text())[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    tasks = [
        subprocess.Popen(["bash", str(script)], cwd=ROOT, env={**environment, "SLURM_ARRAY_TASK_ID": str(k)})
        for k in [*range(last + 1)] * n_times
    ]
    assert set(count_made(tasks, project).values()) == {1}
    assert [task.returncode for task in tasks] == [0] * len(tasks)


def read_table_of(project: Path) -> dict[str, dict[str, float]]:
    places = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in places_in(project).items()
        if name in ("dataset", "data_root", "runs")
    ]
    line = [sys.executable, "-m", "stages.cli", "table", str(project / "own.toml"), "--json", *places]
    out = subprocess.run(
        line, cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=True
    )
    return {
        row["row"]: {column: cell["value"] for column, cell in row["here"].items()}
        for row in json.loads(out.stdout)["rows"]
    }


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_killed_and_two_at_once(own, call, tmp_path):
    """Twenty kills at random moments, from the beginning again after each end: the same table, and nothing made twice.

    Two processes at once make the last one.
    """
    fresh, whole = tmp_path / "fresh", tmp_path / "whole"
    shutil.copytree(own, fresh, symlinks=True)
    shutil.copytree(own, whole, symlinks=True)
    began = time.monotonic()
    start(whole).communicate(timeout=600)
    seconds = time.monotonic() - began

    def check_end() -> None:
        assert read_table_of(own) == read_table_of(whole)
        for stage in ("step1", "responses", "pseudolabels", "scores"):
            assert list_artifacts(own, stage) == list_artifacts(whole, stage)

    numbers = random.Random(0)
    n_ends = 0
    for _ in range(20):
        process = start(own)
        time.sleep(numbers.uniform(0.2, 1) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not any(json.loads(line)["why"] for line in call("experiment", "--dry-run", "--json")):
            n_ends += 1
            check_end()
            shutil.rmtree(own)
            shutil.copytree(fresh, own, symlinks=True)
    print(f"20 kills, {n_ends} ends; a whole run takes {seconds:.1f} s")
    both = [start(own), start(own)]
    assert set(count_made(both, own).values()) == {1}
    lines = [process.communicate(timeout=600)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [len(made) for made in lines] == [3, 3]
    check_end()


def test_check_makes_it_again(own, call, capsys):
    call("experiment")
    lines = call("experiment", "--check")
    assert len(lines) == 7  # two rows of three columns and one of one
    assert all("within" in line for line in lines)
    assert not list((own / "runs").glob("check-*"))
    for folder in (own / "runs" / "tiny" / "scores").glob("[0-9a-f]" * 12):
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["flags"] == {"scored": "step1", "split": "val"}:  # a stored result that cannot be made again
            path = folder / "scores.json"
            scores = json.loads(path.read_text())
            scores["metrics"]["miou"] |= {"value": 99.0, "ci_low": 98.0, "ci_high": 100.0}
            path.write_text(json.dumps(scores))
    lines = call("experiment", "--check", code=1)
    outside = [line for line in lines if "OUTSIDE" in line]
    assert len(lines) == 7
    assert {line.split(": ")[0] for line in outside} == {f"{row}, tiny/val miou" for row in ("as it is", "ten times")}
    assert all(": 99.00 → " in line for line in outside)


def test_a_result_tells_what_it_was_made_by(own, call):
    call("experiment")
    (line,) = call("table", "--json")
    (made_by,) = json.loads(line)["made_by"]  # one machine and one environment for all rows
    assert made_by["libraries"]["numpy"] == np.__version__
    assert made_by["host"]["name"] == platform.node()
    assert made_by["host"]["python"] == platform.python_version()
    stored = next((own / "runs" / "tiny" / "scores").glob("[0-9a-f]*/manifest.json"))
    assert {key: json.loads(stored.read_text())[key] for key in made_by} == made_by
    seconds = 0.0
    for path in (own / "runs" / "tiny").rglob("manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["stage"] in ("step1", "scores") or manifest["flags"] in (
            {"split": "train"}, {"split": "val"}, {"refine": False},
        ):  # fmt: skip
            seconds += manifest["timings"]["total"]
    assert json.loads(line)["hours"] == pytest.approx(seconds / 3600)
    assert json.loads(line)["devices"] == ["cpu"]


def test_a_new_users_table_by_readmes_text_alone(copy_of_project, call_ris, capsys):
    """The file that README shows, on the tiny data set in place of shapes, and the two commands of its first line."""
    (text,) = re.findall(
        r"```toml\n(# rates\.toml:.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    commands = re.findall(r"ris (\w+) rates\.toml", text.splitlines()[0])
    assert commands == ["experiment", "table"]
    path = copy_of_project / "rates.toml"
    path.write_text(text.replace("shapes/", "tiny/"))
    for command in commands:
        capsys.readouterr()
        assert call_ris(command, path, **places_in(copy_of_project)) == 0
    lines = capsys.readouterr().out.splitlines()
    names = re.findall(r'^name = "(.*)"$', text, re.MULTILINE)
    assert names == ["as it is", "ten times"]
    rows = {name: next(line for line in lines if line.startswith((f" {name}", name))) for name in names}
    assert all(row.count("±") == 2 for row in rows.values())
    assert any("standard deviation over 2 seeds" in line for line in lines)
    rates = {
        json.loads(manifest.read_text())["configuration"]["lr"]
        for manifest in (copy_of_project / "runs" / "tiny" / "step1").glob("[0-9a-f]*/manifest.json")
    }
    assert 3e-3 in rates


def test_the_curve_of_a_setting(own, call, call_ris, capsys, tmp_path):
    out = tmp_path / "sweep.png"
    words = ("figure", "sweep", own / "own.toml", "--out", out)
    (own / "own.toml").write_text(f'axis = "rate"{TWO_RATES}')
    assert call_ris(*words, **places_in(own)) == 1
    assert "nothing is made yet" in capsys.readouterr().err
    call("experiment")
    assert call_ris(*words, **places_in(own)) == 0
    with Image.open(out) as picture:
        dark = np.asarray(picture.convert("L")) < 128
    assert len(np.unique(dark.any(axis=0).nonzero()[0] * 3 // picture.width)) == 3  # a panel for each column
    (own / "own.toml").write_text(TWO_RATES)
    assert call_ris(*words, **places_in(own)) == 1
    assert "axis" in capsys.readouterr().err


def test_the_rows_as_columns_of_a_figure(own, call, call_ris, capsys, tmp_path):
    """Image, "as it is", "ten times", truth: the rate's answers differ, and "labels" are of train alone."""
    words = ("figure", "qualitative", own / "own.toml", "--split", "val", "--out")
    assert call_ris(*words, tmp_path / "none.png", **places_in(own)) == 0  # the chain's own Step-1 is there
    call("experiment")
    assert call_ris(*words, tmp_path / "both.png", **places_in(own)) == 0
    columns = {}
    for name in ("none", "both"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 0
            columns[name] = np.array_split(np.asarray(picture.convert("RGB")), 4, axis=1)
    same = [np.array_equal(*pair) for pair in zip(columns["none"], columns["both"], strict=True)]
    assert same == [True, True, False, True]  # what was not made had an empty column
    capsys.readouterr()
    for wrong, message in (
        (("curves", "table5"), "curves are of trainings"),
        (("qualitative", own / "own.toml", "--split", "testA"), "testA"),
    ):
        assert call_ris("figure", *wrong, "--out", tmp_path / "a.png", **places_in(own)) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real samples are not here")
@pytest.mark.timeout(900)
def test_a_sample_of_refcoco_is_partial_in_the_papers_table(tmp_path, tiny_stages, method_tables, call_ris, capsys):
    card = tmp_path / "refcoco.toml"
    splits = "train = 120_624\nval = 10_834\ntestA = 5_657\ntestB = 5_095\n"
    layout = 'format = "refer"\npartition = "unc"\nannotations = "refer/refcoco"\nimages = "train2014"\n'
    card.write_text(f'name = "refcoco"\n{layout}[splits]\n{splits}{tiny_stages}{method_tables}')
    places = {**places_in(tmp_path), "dataset": card, "data_root": SAMPLE}
    for words in (
        ["train-step1"], ["dump-responses"], ["make-pseudolabels", "--refine"], ["train-step2"],
        ["dump-responses", "--method", "maskclip", "--split", "val", "--no-prms"], ["score", "--split", "val"],
    ):  # fmt: skip
        assert call_ris(*words, **places, quiet=True, debug=True) == 0
    capsys.readouterr()
    assert call_ris("table", "1", "--format", "csv", **places) == 0
    rows = {(row["row"], row["column"]): row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert {column for _, column in rows} == {f"refcoco/{split} pointit" for split in ("val", "testA", "testB")}
    measured = {key: row for key, row in rows.items() if row["value"]}
    paper = {"Step-1": "60.95", "Step-2": "60.86", "MaskCLIP, no training": ""}
    assert {row: line["paper"] for (row, _), line in measured.items()} == paper
    assert {(column, line["partial"]) for (_, column), line in measured.items()} == {("refcoco/val pointit", "True")}
    assert call_ris("table", "1", "--format", "markdown", **places) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    shown = {line[0].removeprefix("| "): line[1:3] for line in lines if line[0].removeprefix("| ") in paper}
    assert set(shown) == set(paper)
    for name, (cell, figure) in shown.items():
        assert re.fullmatch(r"\d+\.\d ±\d+\.\d\*", cell), name
        assert figure == paper[name]
