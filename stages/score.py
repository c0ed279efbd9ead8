"""`ris score`: chance, response maps, pseudo-labels and Step-2 against boxes and masks → one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ris_pipeline.errors import RisError
from ris_pipeline.scoring.rows import ROWS, list_stages
from stages.console import draw_table, emit
from stages.context import (
    METRIC_WORDS,
    AtTestTime,
    Device,
    Making,
    Output,
    Places,
    Precision,
    Seed,
    Splits,
    check_metric,
    choose_from,
    open_context,
)

if TYPE_CHECKING:
    from ris_pipeline.scoring.metrics import Estimate
    from ris_pipeline.scoring.scores import Score


def run(
    places: Places,
    making: Making,
    output: Output,
    at_test_time: AtTestTime,
    metric: Annotated[
        str,
        typer.Option(
            metavar=f"<{'|'.join(METRIC_WORDS)}>",
            callback=check_metric,
            help="What to print; all are computed. cIoU is oiou, gIoU is miou.",
        ),
    ] = "all",
    split: Splits = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar=f"<{'|'.join(dict.fromkeys(row.stage for row in ROWS.values()))}|METHOD>",
            callback=choose_from(list_stages),
            help="Whose maps or masks; all if left out.",
        ),
    ] = None,
    min_box_area: Annotated[
        float | None, typer.Option(help="Leave out objects whose box covers at most this share: 0.05 on ReferIt.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Score what the stages made against boxes and masks.

    Reads:    responses, pseudolabels, step2; boxes and masks of each split
    Writes:   runs/<dataset>/scores/: scores.json, outcomes.csv; stdout: a table
    Example:  ris score --dataset refcoco --split val --metric pointit
    """  # fmt: skip
    from ris_pipeline.chain.scores import score

    context = open_context(places, making, output, seed=seed, device=device, precision=precision)
    settings = None if min_box_area is None else {"skip_small_boxes": min_box_area}
    scores = score(context, settings, splits=split, stage=stage, test_time=at_test_time.chosen)
    if scores:
        shown, columns = _choose(scores, metric)
        if metric == "all" and len(columns) < len({name for score in shown for name in score.metrics}):
            context.say("also scored: prec@0.6 to 0.9 and boxes; print them by --metric prec, --metric box or --json")
        title = f"{context.card.name}: percent ± half of the 95 % interval (bootstrap over refs)"
        lines = [title, render_scores(shown, columns), *_remarks(shown)]
        emit(output, "\n".join(lines), [score.to_json() for score in shown])
    elif output.json:
        emit(output, "", [])


def _choose(scores: Sequence[Score], metric: str) -> tuple[list[Score], list[str]]:
    """Return the scores that have a chosen metric, with those metrics, and the columns; RisError where none has."""
    from ris_pipeline.scoring.metrics import HEADLINE, require_metric, select_metrics

    chosen = select_metrics(metric)
    shown = [score for score in scores if any(name in score.metrics for name in chosen)]
    if not shown and all(score.row.kind == "labels" for score in scores):
        raise RisError(f"{metric}: a pseudo-label is a mask and has no point; choose miou, oiou, prec or box")
    if not shown:
        require_metric(scores[0].metrics, chosen[0])
    columns = [name for name in chosen if any(name in score.metrics for score in shown)]
    if metric == "all" and "miou" in columns:
        columns = [name for name in HEADLINE if name in columns]
        if "mrr" in columns:  # counted by refs instead of sentences
            columns = [name for name in columns if name not in ("n_acc", "t_acc")]
    return [
        replace(score, metrics={name: score.metrics[name] for name in chosen if name in score.metrics})
        for score in shown
    ], columns


def _remarks(scores: Sequence[Score]) -> list[str]:
    """Return the footnotes of the table: rows of a part of their split, and stale rows."""
    parts = {score.split: score.partial for score in scores if score.partial}
    lines = [
        f"* partial: {part['sentences']:,} of the {part['expected']:,} sentences of {split}"
        for split, part in parts.items()
    ]
    return lines + [f"† {score.row.name} {score.split} is stale: {score.stale[0]}" for score in scores if score.stale]


def render_scores(scores: Sequence[Score], columns: Sequence[str]) -> str:
    """Return the table: percent ± half of the 95 % interval, the paper's figure in a column of its own.

    Another column says the supervision of each row, where it is not text alone for all of them.
    """
    with_paper = {name for name in columns if any(name in score.paper for score in scores)}
    with_tier = any(score.tier != "text" for score in scores)
    titles = ["scored", "split", *(["supervision"] if with_tier else []), "sentences"]
    for name in columns:
        titles += [name, "paper"] if name in with_paper else [name]
    sections: dict[str, list[list[str]]] = {}
    for score in scores:
        marks = ("*" if score.partial else "") + ("†" if score.stale else "")
        cells = [score.row.name + marks, score.split, *([score.tier] if with_tier else []), f"{score.n_sentences:,}"]
        for name in columns:
            cells.append(_format(score.metrics.get(name), score.n_sentences))
            if name in with_paper:
                cells.append(f"{score.paper[name]:.2f}" if name in score.paper else "")
        sections.setdefault(score.split, []).append(cells)
    return draw_table(titles, list(sections.values()), n_words=2 + with_tier)


def _format(estimate: Estimate | None, n_sentences: int) -> str:
    """Return the score, half of its interval, and the number of sentences where that is not all."""
    if estimate is None:
        return "–"
    part = f" (n={estimate.n_expressions:,})" if estimate.n_expressions < n_sentences else ""
    return f"{estimate.value:.1f} ±{(estimate.ci_high - estimate.ci_low) / 2:.1f}{part}"
