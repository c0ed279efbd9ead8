"""The commands around the chain: to use what it made, to look at it, to diagnose."""

from pathlib import Path
from typing import Annotated

import typer

from stages.cli_chain import Splits
from stages.options import StageOptions
from stages.register import a_metric, command, one_of, run_stage

KINDS = ("tris-step1", "tris-step2", "irn", "clip")
FIGURES = ("qualitative", "curves", "table")


@command("predict")
def predict(
    options: StageOptions,
    arguments: Annotated[
        list[str], typer.Argument(metavar="IMAGE... TEXT...", help="Images or folders, then sentences in quotes.")
    ],
    more: Annotated[
        list[Path] | None, typer.Option("--image", metavar="<path>", help="A further image or folder; repeatable.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A checkpoint that TRIS released (.pth), or the folder of an artifact.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("predictions"),
    save_map: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="The map too, as float32 (H, W) at the image's size.")
    ] = None,
    raw_orientation: Annotated[
        bool, typer.Option("--raw-orientation", help="Do not turn photographs as their EXIF data say.")
    ] = False,
) -> None:
    """Segment what each sentence says in images.

    Reads:    --checkpoint, or step2, or step1 where there is no step2; images
    Writes:   <out>/: <image>-<k>-mask, -overlay, -map.png; predictions.json
    Example:  ris predict photo.jpg "the dog on the left" "the cat" --out masks
    """
    run_stage(
        "predict", options, arguments=arguments, out=out, more=more or [], checkpoint=checkpoint, save_map=save_map,
        raw_orientation=raw_orientation,
    )  # fmt: skip


@command("import-checkpoint")
def import_checkpoint(
    options: StageOptions,
    file: Annotated[Path, typer.Argument(help="A checkpoint of TRIS or IRNet, or a CLIP of OpenAI's.")],
    kind: Annotated[str | None, one_of(KINDS, "What it is; told from its entries if left out.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for it; if left out, it becomes the --dataset's in --runs.")
    ] = None,
) -> None:
    """Turn a released checkpoint into an artifact.

    Reads:    a .pth of TRIS or IRNet, or OpenAI's .pt; it executes nothing
    Writes:   <out>/, or runs/<dataset>/step1/ or step2/: model.safetensors
    Example:  ris import-checkpoint stage1.pth --dataset refcoco
    """
    run_stage("import_checkpoint", options, file=file, kind=kind, out=out)


@command("report")
def report(
    options: StageOptions,
    split: Splits = None,
    samples: Annotated[int | None, typer.Option(min=0, help="Sentences in the gallery; 200 if left out.")] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="File for a copy of it.")] = None,
) -> None:
    """Show in one HTML file what the stages made and scored.

    Reads:    all that the stages left in runs/<dataset>/; images, boxes, masks
    Writes:   runs/<dataset>/report/: report.html
    Example:  ris report --dataset refcoco --split val --out report.html
    """
    run_stage("report", options, splits=split, samples=samples, out=out)


@command("figure")
def figure(
    options: StageOptions,
    kind: Annotated[str, one_of(FIGURES, "What to draw.", typer.Argument)],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File to write, .png or .pdf.")],
    split: Splits = None,
    ref: Annotated[list[int] | None, typer.Option(metavar="<int>", help="Id of a ref to show; repeatable.")] = None,
) -> None:
    """Draw sample rows, curves or the scores for a paper.

    Reads:    what the stages left in runs/<dataset>/; images, boxes, masks
    Writes:   the file of --out
    Example:  ris figure qualitative --ref 12 --ref 40 --out rows.pdf
    """
    run_stage("figure", options, kind=kind, out=out, splits=split, refs=ref)


@command("pretrain-clip")
def pretrain_clip(options: StageOptions) -> None:
    """Train the small CLIP of the embedded data set.

    Reads:    nothing: its pictures and captions are generated
    Writes:   runs/shapes/clip/: open_clip_config.json, model.safetensors
    Example:  ris pretrain-clip --device cuda
    """
    run_stage("pretrain_clip", options)


@command("status")
def status(
    options: StageOptions,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare checksums.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Verify; take out what is damaged, to be resumed.")] = False,
) -> None:
    """Show what is fresh, stale and why, running or missing.

    Reads:    the manifests of runs/<dataset>/; with --verify every file
    Writes:   stdout: a tree; with --repair artifacts without their damaged files
    Example:  ris status --dataset refcoco
    """
    run_stage("status", options, verify=verify, repair=repair)


@command("doctor")
def doctor(options: StageOptions) -> None:
    """Find what is wrong here, and say what to do about it.

    Reads:    installation, device, disk; the card's weights and data set
    Writes:   stdout: a line per finding; exit status 1 where something is broken
    Example:  ris doctor --dataset refcoco --data-root /path/to/data
    """
    run_stage("doctor", options)


@command("runs")
def runs(
    options: StageOptions,
    which: Annotated[list[str] | None, typer.Argument(help="Two runs to compare, by digest or name.")] = None,
    metric: Annotated[str, a_metric("What to compare.")] = "all",
    tensorboard: Annotated[Path | None, typer.Option(help="Write the training curves there instead.")] = None,
) -> None:
    """List all runs, or compare two: settings and scores.

    Reads:    runs/<dataset>/: the manifests; of two runs their outcomes.csv
    Writes:   stdout: a table; with --tensorboard event files of metrics.jsonl
    Example:  ris runs step2/pseudo 3f2a --metric miou
    """
    run_stage("runs", options, which=which or [], metric=metric, tensorboard=tensorboard)


@command("demo")
def demo(
    options: StageOptions,
    host: Annotated[str, typer.Option(help="Address to listen on; others can reach 0.0.0.0.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    checkpoint: Annotated[Path | None, typer.Option(help="Instead of the latest Step-2.")] = None,
) -> None:
    """Serve a page: drop an image, write sentences, compare.

    Reads:    step2, or step1 where there is no step2, or --checkpoint
    Writes:   stdout: the page's address; nothing on the disk
    Example:  ris demo --port 8080
    """
    run_stage("demo", options, host=host, port=port, checkpoint=checkpoint)


@command("cost")
def cost(options: StageOptions) -> None:
    """Count and time the networks, beside Table 2.

    Reads:    the card's configuration; no weights: values are random
    Writes:   stdout: parameters, multiplications, milliseconds
    Example:  ris cost --dataset refcoco --device cpu
    """
    run_stage("cost", options)


@command("table")
def table(
    options: StageOptions,
    number: Annotated[int, typer.Argument(min=1, max=7, metavar="N", help="Which one, 1 to 7.")],
) -> None:
    """Print a table of the paper, with our latest scores.

    Reads:    scores of the paper's data sets below runs/, where there are any
    Writes:   stdout: the table
    Example:  ris table 1
    """
    run_stage("table", options, number=number)
