import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import ris_pipeline
from ris_pipeline.errors import RisError
from stages import register
from stages.cli import app
from stages.options import StageOptions


def list_commands(group: Any, *names: str) -> Iterator[list[str]]:
    """The words of every command, as typed after `ris`."""
    for name, one in group.commands.items():
        yield from list_commands(one, *names, name) if hasattr(one, "commands") else [[*names, name]]


COMMANDS = list(list_commands(typer.main.get_command(app)))
OPTIONS = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(StageOptions)]


def ris(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def install_stage(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[..., None]) -> None:
    module: Any = types.ModuleType(f"stages.{name}")
    module.run = run
    monkeypatch.setitem(sys.modules, f"stages.{name}", module)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_takes_the_common_options(command):
    result = ris(*command, "--help")
    assert result.exit_code == 0
    words = result.stdout.split()
    assert [option for option in OPTIONS if option not in words] == []


def test_all_commands_are_looked_at():
    assert {"train-step1", "score", "data check"} <= {" ".join(words) for words in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_says_what_is_read_and_written_and_gives_an_example_that_is_right(monkeypatch, command):
    text = ris(*command, "--help").stdout
    for name in ("Reads:   ", "Writes:  ", "Example: "):
        assert f"\n  {name}" in text
    assert max(map(len, text.splitlines())) <= 80
    (example,) = re.findall(r"^  Example:  ris (.*)$", text, re.MULTILINE)
    words = shlex.split(example)
    assert words[: len(command)] == command
    called = []
    monkeypatch.setattr(register, "import_module", lambda name: Recorder(called))
    result = ris(*words)
    assert (result.exit_code, len(called)) == (0, 1), result.stderr


class Recorder:
    """Stands for a stage's module: any function of it notes its call."""

    def __init__(self, called: list[Any]) -> None:
        self.called = called

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **flags: self.called.append((name, arguments, flags))


def test_options_reach_the_stage(monkeypatch):
    seen = []
    install_stage(monkeypatch, "train_step2", lambda options, **flags: seen.append((options, flags)))
    line = "train-step2 --oracle --limit 9 --dataset x --set lr=1 --set epochs=2 --seed 3 --precision bf16 --runs r"
    assert ris(*line.split()).exit_code == 0
    expected = StageOptions(dataset="x", runs=Path("r"), set=["lr=1", "epochs=2"], seed=3, precision="bf16")
    assert seen == [(expected, {"oracle": True, "init": None, "limit": 9})]


def test_defaults_are_those_of_the_dataclass(monkeypatch):
    seen = []
    install_stage(monkeypatch, "dump_responses", lambda options, **flags: seen.append((options, flags)))
    assert ris("dump-responses").exit_code == 0
    assert seen == [(StageOptions(), {"splits": None, "prms": None})]


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("make-pseudolabels", {"refine": True}),
        ("make-pseudolabels --no-refine", {"refine": False}),
        ("score --metric pointit --split val --split testA --stage prms",
         {"metric": "pointit", "splits": ["val", "testA"], "stage": "prms", "min_box_area": None}),
        ("score --min-box-area 0.05",
         {"metric": "all", "splits": None, "stage": None, "min_box_area": 0.05}),
        ("predict a.jpg dog cat --out o --image b",
         {"arguments": ["a.jpg", "dog", "cat"], "more": [Path("b")], "out": Path("o"), "checkpoint": None,
          "save_map": None, "raw_orientation": False}),
        ("import-checkpoint a.pth --kind irn --out o",
         {"file": Path("a.pth"), "kind": "irn", "out": Path("o")}),
    ],
)  # fmt: skip
def test_own_arguments_reach_the_stage(monkeypatch, line, flags):
    seen = []
    words = line.split()
    install_stage(monkeypatch, words[0].replace("-", "_"), lambda options, **own: seen.append(own))
    assert ris(*words).exit_code == 0
    assert seen == [flags]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train-step", "Did you mean 'train-step"),
        ("score --datset x", "--dataset"),
        ("score --metric iou", "did you mean 'oiou'?"),
        ("score --metric accuracy", "known: pointit, pointm, miou"),
        ("score --stage prsm", "did you mean 'prms'?"),
        ("data chek", "Did you mean 'check'?"),
        ("train-step1 --precision fp8", "bf16"),
        ("predict", "IMAGE"),
    ],
)
def test_wrong_usage_exits_2_with_a_hint(line, hint):
    result = ris(*line.split())
    assert result.exit_code == 2
    assert hint.lower() in result.stderr.lower()


def fail(error: BaseException) -> Callable[..., None]:
    def run(options: StageOptions, **flags: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RisError("a.jpg: gone; fetch it"), 1, "ris: a.jpg: gone; fetch it\n"),
        (KeyError("x"), 1, "ris: KeyError: 'x'; run again with --debug for the traceback\n"),
        (ValueError(), 1, "ris: ValueError: ; run again with --debug for the traceback\n"),
        (KeyboardInterrupt(), 130, "ris: interrupted; to go on: ris train-step1 --set 'clip=my clip'\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line(monkeypatch, error, code, line):
    install_stage(monkeypatch, "train_step1", fail(error))
    monkeypatch.setattr("sys.argv", ["/bin/ris", "train-step1", "--force", "--set", "clip=my clip"])
    result = ris("train-step1")
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_debug_shows_the_traceback(monkeypatch):
    install_stage(monkeypatch, "train_step1", fail(RisError("a.jpg: gone")))
    result = ris("train-step1", "--debug")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("ris: a.jpg: gone\n")


def test_the_process_exits_with_the_code_too():
    process = subprocess.run(
        [sys.executable, "-c", "from stages.cli import main; main()", "status", "--dataset", "refcocoo"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stdout == ""
    assert "did you mean 'refcoco'" in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error():
    """As `head` behind a pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "stages.cli", "data", "list"]
    result = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_data_list_names_every_card():
    assert "refcocog-umd     refer    train 80,512, val 4,896, test 9,602" in ris("data", "list").stdout.splitlines()
    listed = {row["name"]: row for row in json.loads(ris("data", "list", "--json").stdout)}
    assert listed["referit"]["splits"] == {"train": 59976, "test": 60105}


def run_ris(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "stages.cli", *words],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env={**os.environ, **environment},
    )  # fmt: skip


def test_version():
    assert run_ris("--version").stdout == f"ris {ris_pipeline.__version__}\n"


def test_the_old_launcher_is_named():
    done = run_ris("train-step1", "--local-rank=0")
    assert done.returncode == 2
    assert "torchrun" in done.stderr


def test_a_part_of_torchruns_environment_is_named(monkeypatch):
    from ris_pipeline.process.ranks import find_ranks

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RisError, match="RANK, MASTER_ADDR, MASTER_PORT: start several processes by torchrun"):
        find_ranks()


def test_a_command_of_one_process_runs_in_the_first_of_torchrun():
    first = run_ris("data", "list", RANK="0", WORLD_SIZE="2", TORCHELASTIC_RUN_ID="1")
    other = run_ris("data", "list", RANK="1", WORLD_SIZE="2", TORCHELASTIC_RUN_ID="1")
    assert "refcoco" in first.stdout
    assert "list runs in one process" in first.stderr
    assert (other.returncode, other.stdout, other.stderr) == (0, "", "")


def test_a_terminal_without_utf8_does_not_fail():
    done = run_ris("table", "1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
