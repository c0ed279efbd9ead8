import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import ris_pipeline
from ris_pipeline.chain.context import open_context
from ris_pipeline.errors import RisError
from stages.cli import app


def list_commands(group: Any, *names: str) -> Iterator[list[str]]:
    """The words of every command, as typed after `ris`."""
    for name, command in group.commands.items():
        yield from list_commands(command, *names, name) if hasattr(command, "commands") else [[*names, name]]


COMMANDS = list(list_commands(typer.main.get_command(app)))


def ris(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def parse(words: list[str]) -> dict[str, Any]:
    """What a command gets of a command line; the usage error where it is wrong."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return dict(command.make_context("ris", list(words)).params)


def list_options(command: list[str]) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", ris(*command, "--help").stdout))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_prints_json_on_demand_and_keeps_quiet(command):
    assert {"--json", "--quiet", "--debug"} <= list_options(command)


def test_a_command_takes_the_options_that_mean_something_to_it():
    places = {"--dataset", "--data-root", "--runs", "--config", "--set"}
    assert places <= list_options(["train-step1"])
    assert {"--device", "--precision", "--workers", "--seed", "--force", "--dry-run"} <= list_options(["train-step1"])
    assert list_options(["status"]) & {"--device", "--force", "--seed"} == set()
    assert list_options(["table"]) & {"--device", "--seed", "--force"} == set()


def test_all_commands_are_looked_at():
    assert {"train-step1", "score", "data check"} <= {" ".join(words) for words in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_says_what_is_read_and_written_and_gives_an_example_that_is_right(command):
    text = ris(*command, "--help").stdout
    for name in ("Reads:   ", "Writes:  ", "Example: "):
        assert f"\n  {name}" in text
    assert max(map(len, text.splitlines())) <= 80
    (example,) = re.findall(r"^  Example:  ris (.*)$", text, re.MULTILINE)
    words = shlex.split(example)
    assert words[: len(command)] == command
    parse(words)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """A function (module.function) that replaces one of the chain, and returns the list of its calls."""

    def replace(name: str) -> list[Any]:
        calls: list[Any] = []
        monkeypatch.setattr(f"ris_pipeline.chain.{name}", lambda *args, **own: calls.append((*args, own)))
        return calls

    return replace


def test_options_reach_the_library(record):
    calls = record("train.train_step2")
    line = "train-step2 --oracle --limit 9 --cache --set lr=1 --set epochs=2 --seed 3 --precision bf16 --runs r --force"
    assert ris(*line.split()).exit_code == 0
    ((context, own),) = calls
    assert own == {
        "oracle": True, "proposals": False, "init": None, "limit": 9, "cache": True, "method": "tris", "round": 1,
    }  # fmt: skip
    assert (context.card.name, context.runs, context.seed, context.precision) == ("shapes", Path("r"), 3, "bf16")
    assert (context.assignments, context.force) == ({"lr": "1", "epochs": "2"}, True)


def test_defaults_are_those_of_the_library(record):
    calls = record("train.train_step1")
    assert ris("train-step1").exit_code == 0
    ((context, _),) = calls
    console = context.console
    assert context == dataclasses.replace(open_context("shapes"), console=console)
    assert not console.is_quiet


@pytest.mark.parametrize(
    ("line", "function", "expected"),
    [
        (
            "make-pseudolabels",
            "pseudolabels.make_pseudolabels",
            {"refine": None, "method": "tris", "round": 1, "proposals": None},
        ),
        (
            "make-pseudolabels --no-refine --round 2",
            "pseudolabels.make_pseudolabels",
            {"refine": False, "method": "tris", "round": 2, "proposals": None},
        ),
        ("import-checkpoint a.pth --out o", "imports.import_checkpoint", {"out": Path("o")}),
    ],
)  # fmt: skip
def test_own_arguments_reach_the_library(record, line, function, expected):
    calls = record(function)
    assert ris(*line.split()).exit_code == 0
    assert calls[0][-1] == expected


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train-step", "Did you mean 'train-step"),
        ("score --datset x", "--dataset"),
        ("score --metric oiu", "did you mean 'oiou'?"),
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


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """A function that makes `ris train-step1` raise an error."""

    def install(error: BaseException) -> None:
        def train(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("ris_pipeline.chain.train.train_step1", train)

    return install


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
def test_an_error_is_one_line(monkeypatch, fail, error, code, line):
    fail(error)
    monkeypatch.setattr("sys.argv", ["/bin/ris", "train-step1", "--force", "--set", "clip=my clip"])
    result = ris("train-step1")
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_debug_shows_the_traceback(fail):
    fail(RisError("a.jpg: gone"))
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
    lines = {line.split()[0]: line for line in ris("data", "list").stdout.splitlines()}
    assert "  refer  " in lines["refcocog-umd"]
    assert "  train 80,512, val 4,896, test 9,602  " in lines["refcocog-umd"]
    assert lines["grefcoco"].endswith("  none named")
    listed = {row["name"]: row for row in json.loads(ris("data", "list", "--json").stdout)}
    assert listed["referit"]["splits"] == {"train": 59976, "test": 60105}
    assert listed["refcoco-m"]["licence"].startswith("MIT;")


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
