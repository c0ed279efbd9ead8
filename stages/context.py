"""The options that commands share, the context that they make, and how a command ends with an error."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from ris_pipeline.artifacts.layout import ROUNDS
from ris_pipeline.errors import RisError, did_you_mean
from ris_pipeline.methods import METHODS
from ris_pipeline.process.console import Console, is_silent
from ris_pipeline.process.failures import explain_failure
from ris_pipeline.process.ranks import OthersEndedError, joined
from ris_pipeline.process.signals import Stopped, watch_signals
from ris_pipeline.process.workers import WORKERS

if TYPE_CHECKING:
    from ris_pipeline.chain.context import Context

SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
# The commands that several processes of torchrun share.
SHARED = (
    "pretrain-clip", "train-step1", "dump-responses", "make-pseudolabels", "train-step2", "score", "predict",
)  # fmt: skip
# Of --metric; prec and box are groups.
METRIC_WORDS = ("pointit", "pointm", "miou", "oiou", "prec", "box", "n_acc", "t_acc", "mrr", "riou", "all")
Option = typer.Option
DataRoot = Annotated[Path, Option(help="Folder that holds the data sets.")]
Runs = Annotated[Path, Option(help="Folder that holds the artifacts.")]
DryRun = Annotated[bool, Option("--dry-run", help="Say what would run and why, then stop.")]


@dataclass(frozen=True, slots=True)
class Places:
    """The data set, and where its files, the artifacts and the settings are."""

    dataset: Annotated[str, Option(help="Name of a card, or path of its .toml file.")] = "shapes"
    data_root: DataRoot = Path("data")
    runs: Runs = Path("runs")
    preset: Annotated[str | None, Option(help="A shipped configuration: best; --config and --set are stronger.")] = None
    config: Annotated[Path | None, Option(help="TOML file with one table per stage.")] = None
    set: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="Change one setting; repeatable.")] = None


@dataclass(frozen=True, slots=True)
class Making:
    """Whether the command makes its artifact."""

    force: Annotated[bool, Option("--force", help="Make it again, even if nothing changed.")] = False
    dry_run: DryRun = False


@dataclass(frozen=True, slots=True)
class Output:
    """How the command prints."""

    json: Annotated[bool, Option("--json", help="Print the results as JSON.")] = False
    quiet: Annotated[bool, Option("--quiet", help="Print no progress and no remarks.")] = False
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error.")] = False


@dataclass(frozen=True, slots=True)
class AtTestTime:
    """What is done to the answers of a network; never by default."""

    mirror: Annotated[bool, Option("--mirror", help="Mean with the mirror image, left and right swapped.")] = False
    sizes: Annotated[bool, Option("--sizes", help="Mean over the image at 1, 1.2 and 1.4 of its size.")] = False
    rivals: Annotated[
        bool, Option("--rivals", help="64 sentences drawn from the split train compete for the pixels.")
    ] = False
    compete: Annotated[
        bool, Option("--compete", help="The sentences of an image compete for its pixels: another protocol.")
    ] = False
    crf: Annotated[bool, Option("--crf", help="Clean the masks by the dense CRF.")] = False

    @property
    def chosen(self) -> list[str]:
        """The names in `scoring.rows.TEST_TIME` of what was chosen."""
        return [option.name for option in fields(self) if getattr(self, option.name)]


def choose_from(list_known: Callable[[], Iterable[str]]) -> Callable[[str | None], str | None]:
    """Return a callback for an option that takes a known word; for an unknown one it names the nearest."""

    def check(value: str | None) -> str | None:
        known = list(list_known())
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is not known{did_you_mean(value, known)}")
        return value

    return check


GROUPS = (Places, Making, Output, AtTestTime)
Seed = Annotated[int, Option(min=0, max=2**63 - 1, help="Seed of all random numbers.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[
    Literal["fp32", "tf32", "bf16", "fp16", "auto"],
    Option(help="bf16, fp16: mixed precision; auto: bf16 where the device has it; tf32 and fp16 need CUDA."),
]
RawOrientation = Annotated[bool, Option("--raw-orientation", help="Do not turn photographs as their EXIF data say.")]
Workers = Annotated[int, Option(min=0, help="Processes that read images.", show_default="one a core, 2 to 8")]
Splits = Annotated[
    list[str] | None, Option("--split", metavar="<str>", help="Split to use; repeatable; all of the card if left out.")
]
MethodName = Annotated[
    str, Option("--method", metavar="<str>", callback=choose_from(lambda: METHODS), help="TRIS or a compared method.")
]
Round = Annotated[
    int, Option(min=1, max=max(ROUNDS), help="Round of labels: from the second on Step-2's answers make them.")
]
Init = Annotated[
    Path | None, Option(metavar="FROM", help="Start from these weights: a trained artifact's folder, or a checkpoint.")
]
Limit = Annotated[
    int | None, Option(min=1, metavar="N", help="Try it on the first N refs; the result is kept apart as first-N.")
]

Cache = Annotated[bool, Option("--cache", help="Decode each image once, into runs/<dataset>/cache; the same result.")]

Compile = Annotated[bool, Option("--compile", help="Use torch.compile; the first steps take minutes more.")]


def open_context(
    places: Places,
    making: Making = Making(),
    output: Output = Output(),
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    workers: int = WORKERS,
    compiled: bool = False,
) -> Context:
    """Return the library's context of a command's options."""
    from ris_pipeline.chain.context import Context
    from ris_pipeline.config import parse_assignments
    from ris_pipeline.datasets.card import load_card

    return Context(
        load_card(places.dataset),
        data_root=places.data_root,
        runs=places.runs,
        preset=places.preset,
        config_file=places.config,
        assignments=parse_assignments(places.set or ()),
        seed=seed,
        device_name=device,
        precision=precision,
        workers=workers,
        compiled=compiled,
        force=making.force,
        dry_run=making.dry_run,
        console=Console(quiet=output.quiet),
        card_name=places.dataset,
    )


def add_command(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Add a function to `app` as a command; each parameter that is a group of options becomes these options.

    Its help is the docstring: a sentence, then the lines "Reads:", "Writes:" and "Example:".
    """
    hints = get_type_hints(function, include_extras=True)
    own = [p for p in inspect.signature(function).parameters.values() if hints[p.name] not in GROUPS]
    parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
    groups = {parameter: kind for parameter, kind in hints.items() if kind in GROUPS}
    for kind in groups.values():
        options = get_type_hints(kind, include_extras=True)
        parameters += [p.replace(annotation=options[p.name]) for p in inspect.signature(kind).parameters.values()]

    @functools.wraps(function)
    def run(**values: Any) -> None:
        for parameter, kind in groups.items():
            values[parameter] = kind(**{option: values.pop(option) for option in inspect.signature(kind).parameters})
        output = next(value for value in values.values() if isinstance(value, Output))
        if name not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1":
            if is_silent():
                return
            os.environ["WORLD_SIZE"] = "1"
            Console(quiet=output.quiet).say(f"{name} runs in one process; the others of torchrun have nothing to do")
        _with_errors_shown(functools.partial(function, **values), debug=output.debug)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword_only}
    # After \b, click leaves a paragraph's lines as they are.
    app.command(name, help=(inspect.getdoc(function) or "").replace("\n\nReads:", "\n\n\b\nReads:"))(run)


def check_metric(value: str) -> str:
    """Return this project's name of a metric, or of a group of metrics, given in any usual spelling."""
    from ris_pipeline.scoring.metrics import METRICS, find_metric

    try:
        found = find_metric(value)
    except RisError as error:
        raise typer.BadParameter(str(error)) from error
    choose_from(lambda: [*METRIC_WORDS, *METRICS])(found)
    if found != value.casefold():
        print(f"{value}: printed as {found} (cIoU = oIoU; gIoU = mIoU)", file=sys.stderr)
    return found


def _with_errors_shown(action: Callable[[], None], *, debug: bool) -> None:
    """Run `action`; an error ends the process with one line on stderr, after its traceback with --debug."""
    try:
        with watch_signals(), joined():
            action()
    except OthersEndedError:
        _stop(None, 1, debug)
    except RisError as error:
        _stop(f"ris: {error}", 1, debug)
    except Stopped as stop:
        line = f"ris: stopped by {stop}; to go on: {_same_command()}"
        _stop(None if is_silent() else line, 128 + stop.number, debug)
    except KeyboardInterrupt:
        _stop(f"ris: interrupted; to go on: {_same_command()}", 130, debug)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        other = f"{type(error).__name__}: {first_line}; run again with --debug for the traceback"
        _stop(f"ris: {explain_failure(error) or other}", 1, debug)


def _same_command() -> str:
    """Return the command as typed but without --force, which would throw away what can be resumed."""
    if "RANK" in os.environ:
        return "the same torchrun command"
    return shlex.join(["ris", *(word for word in sys.argv[1:] if word != "--force")])


def _stop(line: str | None, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if line is not None:
        print(line, file=sys.stderr)
    raise typer.Exit(code)
