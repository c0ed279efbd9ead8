"""The options of every command, and how a command speaks: results on stdout, remarks on stderr."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ris_pipeline.datasets import Card

TABLE_WIDTH = 120  # columns


@dataclass(frozen=True, slots=True)
class StageOptions:
    """The options of every stage command; stages.cli makes its command line from these fields."""

    dataset: Annotated[str, typer.Option(help="Name of a card, or path of its .toml file.")] = "shapes"
    data_root: Annotated[Path, typer.Option(help="Folder that holds the data sets.")] = Path("data")
    runs: Annotated[Path, typer.Option(help="Folder that holds the artifacts.")] = Path("runs")
    config: Annotated[Path | None, typer.Option(help="TOML file with one table per stage.")] = None
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Change one configuration value; repeatable."),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of all random numbers.")] = 0
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto"
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="bf16, fp16: automatic mixed precision; fp16 needs CUDA.")
    ] = "fp32"
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 2
    force: Annotated[bool, typer.Option("--force", help="Make it anew, even where nothing changed.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why, then stop.")] = False
    json: Annotated[bool, typer.Option("--json", help="Results as JSON.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False


def card_of(options: StageOptions) -> "Card":
    """The card of the data set of `options`."""
    from ris_pipeline.datasets import load_card

    return load_card(options.dataset)


def emit(options: StageOptions, text: str, value: Any) -> None:
    """Prints a result on stdout: `text`, or `value` as one line of JSON with --json."""
    if is_silent():
        return
    try:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False) if options.json else text, flush=True)
    except BrokenPipeError:  # who reads has seen enough, as `head` has; what is left must not fail at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def align(rows: Sequence[Sequence[str]]) -> str:
    """The cells as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def draw_table(titles: Sequence[str], sections: Sequence[Sequence[Sequence[str]]], n_words: int) -> str:
    """Return a table with a line below its titles and between its sections; the first `n_words` columns are words."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for k, title in enumerate(titles):
        table.add_column(title, justify="left" if k < n_words else "right", no_wrap=True)
    for section in sections:
        for cells in section:
            table.add_row(*cells)
        table.add_section()
    console = Console(width=TABLE_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(table)
    # The box has an empty line above the header and below the last row.
    return "\n".join(line.rstrip() for line in capture.get().splitlines()[1:-1])


def say(options: StageOptions, text: str) -> None:
    """Prints a remark on stderr, unless --quiet."""
    if not (options.quiet or is_silent()):
        print(text, file=sys.stderr, flush=True)


def is_silent() -> bool:
    """True in all processes of torchrun but the first, which speaks for them."""
    return os.environ.get("RANK", "0") != "0"
