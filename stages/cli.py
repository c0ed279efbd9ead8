"""The `ris` command line: one module per command, which imports what is heavy when it is called."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from stages import (
    bench,
    cost,
    data,
    demo,
    doctor,
    dump_responses,
    experiment,
    export,
    figure,
    import_checkpoint,
    init,
    make_pseudolabels,
    predict,
    pretrain_clip,
    propose,
    report,
    runs,
    score,
    status,
    table,
    train_step1,
    train_step2,
)
from stages.context import SETTINGS, add_command

app = typer.Typer(help="Images and sentences in, masks out.", **SETTINGS)
data_app = typer.Typer(help="List, fetch, import, check and generate data sets.", **SETTINGS)


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


add_command(app, "init", init.run)
add_command(app, "train-step1", train_step1.run)
add_command(app, "dump-responses", dump_responses.run)
add_command(app, "make-pseudolabels", make_pseudolabels.run)
add_command(app, "train-step2", train_step2.run)
add_command(app, "score", score.run)
add_command(data_app, "list", data.run_list)
add_command(data_app, "fetch", data.run_fetch)
add_command(data_app, "import", data.run_import)
add_command(data_app, "check", data.run_check)
add_command(data_app, "unpack", data.run_unpack)
add_command(data_app, "make-shapes", data.run_make_shapes)
app.add_typer(data_app, name="data")
add_command(app, "predict", predict.run)
add_command(app, "export", export.run)
add_command(app, "import-checkpoint", import_checkpoint.run)
add_command(app, "report", report.run)
add_command(app, "figure", figure.run)
add_command(app, "pretrain-clip", pretrain_clip.run)
add_command(app, "propose", propose.run)
add_command(app, "status", status.run)
add_command(app, "doctor", doctor.run)
add_command(app, "runs", runs.run)
add_command(app, "demo", demo.run)
add_command(app, "cost", cost.run)
add_command(app, "bench", bench.run)
add_command(app, "experiment", experiment.run)
add_command(app, "table", table.run)


def main() -> None:
    """Run `ris`: exit 0 done, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without UTF-8 must not fail after the work is done
            stream.reconfigure(errors="replace")
    if any(word.startswith(("--local-rank", "--local_rank")) for word in sys.argv[1:]):
        print("ris: torch.distributed.launch is not supported: start the processes by torchrun", file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
