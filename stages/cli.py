"""The `ris` command line. Each command imports its module when it is called: `ris --help` answers at once."""

import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ris_pipeline.errors import RisError
from stages.common import StageOptions

_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
app = typer.Typer(help="Images and sentences in, masks out.", **_SETTINGS)
data_app = typer.Typer(help="List, check and generate data sets.", **_SETTINGS)
app.add_typer(data_app, name="data")

Splits = Annotated[list[str] | None, typer.Option("--split", help="Repeatable; every split of the card if left out.")]

Metric = Literal["pointit", "pointm", "miou", "oiou", "prec", "box", "all"]
Scored = Literal["chance", "step1", "prms", "pseudolabels", "step2"]


def command(name: str, group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that registers `function(options, …)` with the options of every command added."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        common = inspect.signature(StageOptions).parameters.values()
        own = [one for one in inspect.signature(function).parameters.values() if one.name != "options"]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            options = StageOptions(**{one.name: values.pop(one.name) for one in common})
            with_errors_shown(functools.partial(function, options, **values), debug=options.debug)

        keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *common)]
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in keyword_only}
        group.command(name)(run)
        return function

    return register


def with_errors_shown(action: Callable[[], None], *, debug: bool) -> None:
    """Runs `action`; an error ends the process with one line on stderr, after its traceback for `debug`."""
    try:
        action()
    except RisError as error:
        _stop(f"ris: {error}", 1, debug)
    except KeyboardInterrupt:
        _stop("ris: interrupted; run the same command to go on", 130, debug)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        _stop(f"ris: {type(error).__name__}: {first_line}; run again with --debug for the traceback", 1, debug)


def _stop(line: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(line, file=sys.stderr)
    raise typer.Exit(code)


def run_stage(module: str, *arguments: Any, function: str = "run", **flags: Any) -> None:
    """Imports stages.`module` and calls its function."""
    getattr(import_module(f"stages.{module}"), function)(*arguments, **flags)


@command("train-step1")
def train_step1(options: StageOptions) -> None:
    """Step-1: learn response maps from images and sentences."""
    run_stage("train_step1", options)


@command("dump-responses")
def dump_responses(
    options: StageOptions,
    split: Splits = None,
    prms: Annotated[
        bool | None, typer.Option("--prms/--no-prms", help="Select one map per ref; as configured if left out.")
    ] = None,
) -> None:
    """Write each sentence's score grid and PRMS's choice."""
    run_stage("dump_responses", options, splits=split, prms=prms)


@command("make-pseudolabels")
def make_pseudolabels(
    options: StageOptions,
    refine: Annotated[bool, typer.Option(help="By inter-pixel relations, or threshold only.")] = True,
) -> None:
    """Turn the selected response maps into masks."""
    run_stage("make_pseudolabels", options, refine=refine)


@command("train-step2")
def train_step2(
    options: StageOptions,
    oracle: Annotated[bool, typer.Option("--oracle", help="Learn from true masks: the upper bound.")] = False,
) -> None:
    """Step-2: learn to segment from the pseudo-labels."""
    run_stage("train_step2", options, oracle=oracle)


@command("score")
def score(
    options: StageOptions,
    metric: Annotated[Metric, typer.Option(help="What to print; all are computed.")] = "all",
    split: Splits = None,
    stage: Annotated[Scored | None, typer.Option(help="Whose maps or masks; all if left out.")] = None,
) -> None:
    """Score what the stages made against boxes and masks."""
    run_stage("score", options, metric=metric, splits=split, stage=stage)


@command("predict")
def predict(
    options: StageOptions,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    text: Annotated[list[str], typer.Argument(help="Sentences, each in quotes.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks and overlays.")] = Path("predictions"),
) -> None:
    """Segment what each sentence says in an image."""
    run_stage("predict", options, image=image, texts=text, out=out)


@command("pretrain-clip")
def pretrain_clip(options: StageOptions) -> None:
    """Train the small CLIP of the embedded data set."""
    run_stage("pretrain_clip", options)


@command("status")
def status(
    options: StageOptions,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare checksums.")] = False,
) -> None:
    """Show what is fresh, stale and why, or missing."""
    run_stage("status", options, verify=verify)


@command("list", data_app)
def data_list(options: StageOptions) -> None:
    """List the known data sets."""
    run_stage("data", options, function="run_list")


@command("check", data_app)
def data_check(options: StageOptions) -> None:
    """Compare the files of a data set with its card."""
    run_stage("data", options, function="run_check")


@command("make-shapes", data_app)
def data_make_shapes(options: StageOptions) -> None:
    """Generate a data set of shapes and sentences."""
    run_stage("data", options, function="run_make_shapes")


def main() -> None:
    """Runs `ris`: exit 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    app()


if __name__ == "__main__":
    main()
