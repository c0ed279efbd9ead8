"""Calls of commands as functions, with the options that are not the default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import typer

from ris_pipeline.chain.context import Context
from stages.cli import app
from stages.context import GROUPS, Making, Output, Places, open_context

SINGLE = ("seed", "device", "precision", "workers", "dry_run")  # options that commands take one by one


@dataclass(frozen=True, slots=True)
class Options:
    """All options that several commands share."""

    dataset: str = "shapes"
    data_root: Path = Path("data")
    runs: Path = Path("runs")
    preset: str | None = None
    config: Path | None = None
    set: list[str] | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    workers: int = 2
    mirror: bool = False
    sizes: bool = False
    rivals: bool = False
    compete: bool = False
    crf: bool = False
    force: bool = False
    dry_run: bool = False
    json: bool = False
    quiet: bool = False
    debug: bool = False

    def group(self, kind: type[Any]) -> Any:
        """The options of one group."""
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})


def call(command: Callable[..., None], options: Options, **arguments: Any) -> None:
    """Call a command with the groups that it takes, and its own arguments."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: options.group(kind) for name, kind in hints.items() if kind in GROUPS}
    single = {name: getattr(options, name) for name in SINGLE if name in hints}
    command(**{**groups, **single, **arguments})


def places_in(root: Path) -> dict[str, Any]:
    """The options by which `call_ris` works on the tiny data set in a folder, on the CPU and in one process."""
    return {
        "dataset": root / "tiny.toml", "data_root": root / "data", "runs": root / "runs", "workers": 0, "device": "cpu",
    }  # fmt: skip


def find_command(words: Sequence[str]) -> Any:
    """The command that the words after `ris` name, or the group in which there is none of that name."""
    found: Any = typer.main.get_command(app)
    for word in words:
        if word not in getattr(found, "commands", {}):
            break
        found = found.commands[word]
    return found


def add_options(words: Sequence[object], **options: object) -> list[str]:
    """The command's words, with those of the options (data_root=…, quiet=True) that it has and that are not there."""
    line = [str(word) for word in words]
    known = {name for parameter in find_command(line).params for name in parameter.opts}
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if option in known and option not in line:
            line += [option] if value is True else [option, str(value)]
    return line


def context_of(options: Options) -> Context:
    """A new context, as a command makes one."""
    groups = map(options.group, (Places, Making, Output))
    return open_context(*groups, **{name: getattr(options, name) for name in SINGLE[:4]})
