"""The commands of the chain, in its order, and those of the data sets."""

from pathlib import Path
from typing import Annotated

import typer

from ris_pipeline.scoring.rows import list_stages
from stages.options import StageOptions
from stages.register import a_metric, add_group, command, one_of, run_stage

data_app = add_group("data", "List, check and generate data sets.")

Splits = Annotated[
    list[str] | None, typer.Option("--split", metavar="<str>", help="Repeatable; every split of the card if left out.")
]

Init = Annotated[
    Path | None,
    typer.Option(metavar="FROM", help="Start from these weights: a trained artifact's folder, or a checkpoint."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="A dry trial: on the first N refs, kept apart as first-N.")
]


@command("train-step1")
def train_step1(options: StageOptions, init: Init = None, limit: Limit = None) -> None:
    """Step-1: learn response maps from images and sentences.

    Reads:    images and sentences of the split train
    Writes:   runs/<dataset>/step1/: model.safetensors, metrics.jsonl
    Example:  ris train-step1 --dataset refcoco --set epochs=10
    """
    run_stage("train_step1", options, init=init, limit=limit)


@command("dump-responses")
def dump_responses(
    options: StageOptions,
    split: Splits = None,
    prms: Annotated[
        bool | None, typer.Option("--prms/--no-prms", help="Select one map per ref; as configured if left out.")
    ] = None,
) -> None:
    """Write each sentence's score grid and PRMS's choice.

    Reads:    step1; images and sentences of each split
    Writes:   runs/<dataset>/responses/: <split>.zarr
    Example:  ris dump-responses --dataset refcoco --split val
    """
    run_stage("dump_responses", options, splits=split, prms=prms)


@command("make-pseudolabels")
def make_pseudolabels(
    options: StageOptions,
    refine: Annotated[bool, typer.Option(help="By inter-pixel relations, or threshold only.")] = True,
) -> None:
    """Turn the selected response maps into masks.

    Reads:    responses of the split train; its images
    Writes:   runs/<dataset>/pseudolabels/: <ref_id>.png, contact-sheet.png
    Example:  ris make-pseudolabels --dataset refcoco --refine
    """
    run_stage("make_pseudolabels", options, refine=refine)


@command("train-step2")
def train_step2(
    options: StageOptions,
    oracle: Annotated[bool, typer.Option("--oracle", help="Learn from true masks: the upper bound.")] = False,
    init: Init = None,
    limit: Limit = None,
) -> None:
    """Step-2: learn to segment from the pseudo-labels.

    Reads:    refined pseudolabels; images and sentences of the split train
    Writes:   runs/<dataset>/step2/: model.safetensors, metrics.jsonl
    Example:  ris train-step2 --dataset refcoco --precision bf16
    """
    run_stage("train_step2", options, init=init, limit=limit, oracle=oracle)


@command("score")
def score(
    options: StageOptions,
    metric: Annotated[str, a_metric("What to print; all are computed.")] = "all",
    split: Splits = None,
    stage: Annotated[str | None, one_of(list_stages(), "Whose maps or masks; all if left out.")] = None,
    min_box_area: Annotated[
        float | None, typer.Option(help="Leave out targets whose box covers no more of the image: 0.05 on ReferIt.")
    ] = None,
) -> None:
    """Score what the stages made against boxes and masks.

    Reads:    responses, pseudolabels, step2; boxes and masks of each split
    Writes:   runs/<dataset>/scores/: scores.json, outcomes.csv; stdout: a table
    Example:  ris score --dataset refcoco --split val --metric pointit
    """
    run_stage("score", options, metric=metric, splits=split, stage=stage, min_box_area=min_box_area)


@command("list", data_app)
def data_list(options: StageOptions) -> None:
    """List the known data sets.

    Reads:    the cards in data/
    Writes:   stdout: a line per data set
    Example:  ris data list
    """
    run_stage("data", options, function="run_list")


@command("check", data_app)
def data_check(
    options: StageOptions,
    deep: Annotated[bool, typer.Option("--deep", help="Open every image and mask too.")] = False,
    write_exclude: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what cannot be used, for the card's exclude.")
    ] = None,
) -> None:
    """List all that is missing, faulty or odd in a data set.

    Reads:    the card and its files; with --deep every image and mask
    Writes:   stdout: what is there of each split, and what is wrong
    Example:  ris data check --dataset refcoco --data-root /path/to/data
    """
    run_stage("data", options, function="run_check", deep=deep, write_exclude=write_exclude)


@command("make-shapes", data_app)
def data_make_shapes(options: StageOptions) -> None:
    """Generate a data set of shapes and sentences.

    Reads:    the card's [generate] table
    Writes:   <data root>/<dataset>/: images, refs(shapes).p, instances.json
    Example:  ris data make-shapes --dataset shapesg
    """
    run_stage("data", options, function="run_make_shapes")
