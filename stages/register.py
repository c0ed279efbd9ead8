"""How a command of `ris` is made of a function: its options, its help, and what an error looks like."""

import functools
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from ris_pipeline.errors import RisError, did_you_mean
from ris_pipeline.process.failures import explain_failure
from ris_pipeline.process.signals import Stopped, watch_signals
from stages.options import StageOptions, is_silent, say

_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
METRICS = ("pointit", "pointm", "miou", "oiou", "prec", "box", "all")  # of --metric; prec and box are groups
TRAININGS = ("train-step1", "train-step2")  # the commands that several processes of torchrun share
app = typer.Typer(help="Images and sentences in, masks out.", **_SETTINGS)


def _show_version(asked: bool) -> None:
    if asked:
        from ris_pipeline import __version__

        print(f"ris {__version__}")
        raise typer.Exit


@app.callback()
def _ris(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Images and sentences in, masks out."""


def add_group(name: str, text: str) -> typer.Typer:
    """A group of commands, `ris <name> …`, with `text` as its help."""
    group = typer.Typer(help=text, **_SETTINGS)
    app.add_typer(group, name=name)
    return group


def command(name: str, group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that registers `function(options, …)` with the options of every command added.

    Its help is the docstring: a sentence, then the lines "Reads:", "Writes:" and "Example:".
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        common = inspect.signature(StageOptions).parameters.values()
        own = [one for one in inspect.signature(function).parameters.values() if one.name != "options"]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            options = StageOptions(**{one.name: values.pop(one.name) for one in common})
            if name not in TRAININGS and "TORCHELASTIC_RUN_ID" in os.environ:
                if is_silent():
                    return
                say(options, f"{name} runs in one process: the others that torchrun started have nothing to do")
            with_errors_shown(functools.partial(function, options, **values), debug=options.debug)

        keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *common)]
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in keyword_only}
        # After \b, click leaves a paragraph's lines as they are.
        group.command(name, help=(inspect.getdoc(function) or "").replace("\n\nReads:", "\n\n\b\nReads:"))(run)
        return function

    return register


def one_of(known: Sequence[str], text: str, declare: Callable[..., Any] = typer.Option) -> Any:
    """A typer option, or argument by `declare`, that takes one of the words `known`; else it names the nearest."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is not known{did_you_mean(value, known)}")
        return value

    return declare(metavar=f"<{'|'.join(known)}>", callback=check, help=text)


def a_metric(text: str) -> Any:
    """A typer option that takes the name of a metric, or of a group of METRICS, in any usual spelling."""

    def check(value: str) -> str:
        # Not above: the command line imports nothing heavy.
        from ris_pipeline.scoring.metrics import METRICS as SINGLE
        from ris_pipeline.scoring.metrics import find_metric

        found, known = find_metric(value), dict.fromkeys((*METRICS, *SINGLE))
        if found not in known:
            raise typer.BadParameter(f"{value!r} is not known{did_you_mean(found, known)}")
        if found != value.casefold():
            print(f"{value}: printed as {found} (cIoU = oIoU; gIoU = mIoU where all refer)", file=sys.stderr)
        return found

    return typer.Option(metavar=f"<{'|'.join(METRICS)}>", callback=check, help=text)


def run_stage(module: str, *arguments: Any, function: str = "run", **flags: Any) -> None:
    """Imports stages.`module` and calls its function."""
    getattr(import_module(f"stages.{module}"), function)(*arguments, **flags)


def with_errors_shown(action: Callable[[], None], *, debug: bool) -> None:
    """Runs `action`; an error ends the process with one line on stderr, after its traceback for `debug`."""
    try:
        with watch_signals():
            action()
    except RisError as error:
        _stop(None if _is_repeated() else f"ris: {error}", 1, debug)
    except Stopped as stop:
        line = f"ris: stopped by {stop}; to go on: {_same_command()}"
        _stop(None if is_silent() else line, 128 + stop.number, debug)
    except KeyboardInterrupt:
        _stop(f"ris: interrupted; to go on: {_same_command()}", 130, debug)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        other = f"{type(error).__name__}: {first_line}; run again with --debug for the traceback"
        _stop(f"ris: {explain_failure(error) or other}", 1, debug)


def _is_repeated() -> bool:
    """Whether the first process of torchrun says the same: all meet the same errors until they work together."""
    ranks = sys.modules.get("ris_pipeline.process.ranks")  # not imported for this: it brings torch
    return is_silent() and not (ranks is not None and ranks.has_joined())


def _same_command() -> str:
    """The command as typed, without --force: that would throw away what there is to go on with."""
    if "RANK" in os.environ:
        return "the same torchrun command"
    return shlex.join(["ris", *(word for word in sys.argv[1:] if word != "--force")])


def _stop(line: str | None, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if line is not None:
        print(line, file=sys.stderr)
    raise typer.Exit(code)
