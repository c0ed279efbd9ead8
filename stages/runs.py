"""`ris runs`: all variants of a data set's artifacts, or the differences between two of them and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ris_pipeline.artifacts.find import compare_identities, find_variant, list_latest, list_variants, pair_scores
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.errors import RisError, suggest_path
from ris_pipeline.process.units import format_duration, format_size
from stages.console import align, emit
from stages.context import METRIC_WORDS, Output, Places, Seed, check_metric, open_context

if TYPE_CHECKING:
    from ris_pipeline.chain.context import Context
    from ris_pipeline.scoring.compare import Difference


def run(
    places: Places,
    output: Output,
    which: Annotated[list[str] | None, typer.Argument(help="Two runs to compare, by digest or name.")] = None,
    metric: Annotated[
        str, typer.Option(metavar=f"<{'|'.join(METRIC_WORDS)}>", callback=check_metric, help="What to compare.")
    ] = "all",
    tensorboard: Annotated[Path | None, typer.Option(help="Write the training curves to this folder instead.")] = None,
    seed: Seed = 0,
) -> None:
    """List all runs, or compare two: settings and scores.

    Reads:    runs/<dataset>/: the manifests; of two runs their outcomes.csv
    Writes:   stdout: a table; with --tensorboard event files of metrics.jsonl
    Example:  ris runs step2/pseudo 3f2a --metric miou
    """
    from ris_pipeline.report.curves import write_events

    context = open_context(places, output=output, seed=seed)
    folder = context.runs / context.card.name
    variants = list_variants(context.runs, context.card.name)
    if not variants:
        raise RisError(f"{folder}: no finished runs yet{suggest_path(folder)}")
    chosen = [find_variant(context.runs, context.card.name, word, variants) for word in which or ()]
    if len(chosen) not in (0, 2):
        raise RisError("give two runs to compare, or none to list them all")
    if tensorboard is not None:
        for path in write_events(chosen or variants, tensorboard):
            emit(output, str(path), {"path": str(path)})
    elif chosen:
        _compare(context, output, chosen[0], chosen[1], variants, metric)
    else:
        _list(context, output, variants)


def _list(context: Context, output: Output, variants: Sequence[Artifact]) -> None:
    stages = dict.fromkeys(str(variant.manifest["stage"]) for variant in variants)
    latest = {
        artifact.name: artifact
        for stage in stages
        for artifact in list_latest(context.runs, context.card.name, stage).values()
    }
    rows: list[dict[str, Any]] = []
    for variant in variants:
        newest = latest.get(variant.name)
        is_latest = newest is not None and newest.digest == variant.digest
        manifest = variant.manifest
        rows.append({
            "run": variant.name,
            "digest": variant.digest,
            "latest": is_latest,
            "finished": manifest["finished"],
            "seconds": manifest["timings"]["total"],
            "bytes": manifest["files"]["bytes"],
            "differs": compare_identities(newest, variant, variants) if newest and not is_latest else [],
        })  # fmt: skip
    cells = [
        [row["run"], row["digest"], row["finished"][:16], format_duration(row["seconds"]), format_size(row["bytes"]),
         "latest" if row["latest"] else _shorten(row["differs"])]
        for row in rows
    ]  # fmt: skip
    emit(output, align([["run", "digest", "finished", "time", "size", "against the latest"], *cells]), rows)


def _shorten(lines: Sequence[str]) -> str:
    return "; ".join([*lines[:2], *([f"and {len(lines) - 2} more"] if len(lines) > 2 else [])])


def _compare(
    context: Context, output: Output, a: Artifact, b: Artifact, variants: Sequence[Artifact], metric: str
) -> None:
    from ris_pipeline.config import ScoreConfig
    from ris_pipeline.scoring.compare import compare_scores
    from ris_pipeline.scoring.metrics import HEADLINE, select_metrics

    changes = compare_identities(a, b, variants)
    metrics = HEADLINE if metric == "all" else select_metrics(metric)
    n_bootstrap = context.resolve(ScoreConfig, "scores").bootstrap
    differences = [
        difference
        for pair in pair_scores(a, b, variants)
        for difference in compare_scores(*pair, metrics, n_bootstrap, context.seed)
    ]
    lines = [f"{letter}: {run.name} {run.digest}, {run.manifest['finished']}" for letter, run in (("a", a), ("b", b))]
    lines += ["", "differs (a → b):" if changes else "nothing differs", *(f"  {line}" for line in changes)]
    if differences:
        header = ["scored", "split", "refs", "metric", "a", "b", "b − a, points [95 % interval]"]
        lines += ["", align([header, *map(_cells, differences)])]
    else:
        context.say("the two have no scores to compare; `ris score` scores the latest artifacts")
    shown = {"a": f"{a.name} {a.digest}", "b": f"{b.name} {b.digest}", "differs": changes}
    emit(output, "\n".join(lines), {**shown, "scores": [asdict(difference) for difference in differences]})


def _cells(difference: Difference) -> list[str]:
    interval = f"{difference.difference:+.1f} [{difference.ci_low:.1f}, {difference.ci_high:.1f}]"
    values = [f"{difference.a:.1f}", f"{difference.b:.1f}", interval]
    return [difference.scored, difference.split, f"{difference.n_refs:,}", difference.metric, *values]
