"""`ris score`: chance, response maps, pseudo-labels and Step-2 against boxes and masks → one table.

Each row is an artifact of its own: scores.json with every metric, outcomes.csv with a line per sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from ris_pipeline.artifacts.files import write_json
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import OUTCOMES, SCORES, store_path
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import ScoreConfig
from ris_pipeline.errors import EmptySplitError, RisError
from ris_pipeline.scoring.metrics import HEADLINE, Estimate, Outcome, require_metric, select_metrics, summarise
from ris_pipeline.scoring.outcomes import save_outcomes
from ris_pipeline.scoring.rows import Row, list_rows
from ris_pipeline.scoring.scores import Score, add_stored_oracle, read_score
from stages.common import command_line, device_of, due, open_dataset, request_of, resolve_config, splits_of
from stages.options import StageOptions, card_of, draw_table, emit, say
from stages.progress import progress
from stages.status import freshness_of

if TYPE_CHECKING:
    from ris_pipeline.datasets import Dataset


@dataclass(frozen=True, slots=True)
class Job:
    """One row to be: what to score, on which split, read from which artifact."""

    row: Row
    split: str
    source: Artifact | None
    request: Request


def run(
    options: StageOptions,
    metric: str,
    splits: Sequence[str] | None,
    stage: str | None,
    min_box_area: float | None = None,
) -> None:
    """Score all that is there, or one stage, on all splits or those named, unless done; print the table."""
    chosen = {} if min_box_area is None else {"skip_small_boxes": min_box_area}
    config = resolve_config(options, ScoreConfig, "scores", **chosen)
    jobs = _plan(options, config, splits, stage)

    @functools.cache
    def load(split: str) -> Dataset:
        return open_scored(options, split, config)

    freshness = freshness_of(options)
    scores, unlabelled = [], set()
    for job in jobs:
        try:
            if (options.force or find(job.request) is None) and not _has_ground_truth(load(job.split)):
                unlabelled.add(job.split)
                continue
        except EmptySplitError:
            if splits:
                raise
            say(options, f"{card_of(options).name} {job.split}: nothing of this split is in the data")
            continue
        if due(options, job.request):
            _make(options, job, load(job.split), config)
        artifact = find(job.request)
        if artifact is not None:
            reasons = freshness.reasons(job.source) if job.source is not None else []
            # Other settings are no fault of a row, and what was deleted since cannot be compared with.
            stale = [
                reason
                for reason in reasons
                if not (reason.startswith("configuration.") or reason.endswith("→ missing"))
            ]
            scores.append(replace(read_score(artifact), path=str(job.request.path), stale=stale))
    if unlabelled:
        say(
            options,
            f"{card_of(options).name} {', '.join(sorted(unlabelled))}: no ref has a box or a mask, so there is no "
            "ground truth and nothing is scored; add boxes or masks, or look at the masks that `ris predict` writes",
        )
    if scores:
        # The card's figures are of its own settings.
        own = not (options.config or options.set)
        _show(options, add_stored_oracle(scores, card_of(options).oracle) if own else scores, metric)
    elif options.json:
        emit(options, "", [])


def _plan(options: StageOptions, config: ScoreConfig, splits: Sequence[str] | None, stage: str | None) -> list[Job]:
    """The rows to make; what cannot be made for want of an artifact is told, or an error if asked for by --stage."""
    jobs = []
    missing: dict[str, list[str]] = {}
    for split in splits_of(options, splits):
        base = request_of(options, "scores", config, flags={"split": split})
        wanted = [
            row for row in list_rows() if stage in (None, row.stage) and row.applies_to(split, chosen=bool(splits))
        ]
        sources = {row.name: row.find_source(options.runs, base.dataset, split) for row in wanted}
        found = [row for row in wanted if not row.source or sources[row.name]]
        if stage and wanted and not found:
            command = wanted[0].command.format(split=split)
            raise RisError(
                f"{base.dataset} {split}: nothing of {stage} to score yet; run: {command_line(options, command)}"
            )
        for row in wanted:
            if row in found:
                jobs.append(_job(row, split, sources[row.name], base))
            elif not row.optional:
                missing.setdefault(row.command.format(split=split), []).append(f"{row.name} {split}")
    for command, names in missing.items():
        say(options, f"left out, not made yet: {', '.join(names)}; run: {command_line(options, command)}")
    if stage and not jobs:
        chosen = ", ".join(splits_of(options, splits))
        raise RisError(f"{stage} is not scored on {chosen}: pseudo-labels are of train only; for step2 name --split")
    return jobs


def _job(row: Row, split: str, source: Artifact | None, base: Request) -> Job:
    inputs = {**base.inputs, source.name: source.digest} if source else base.inputs
    return Job(row, split, source, replace(base, inputs=inputs, flags={"scored": row.name, "split": split}))


def _has_ground_truth(dataset: Dataset) -> bool:
    return any(ref.box_xyxy is not None or ref.segmentation is not None for ref in dataset.refs)


def open_scored(options: StageOptions, split: str, config: ScoreConfig) -> Dataset:
    """The refs of the split that are scored."""
    from ris_pipeline.scoring.evaluate import leave_out_small_boxes

    return leave_out_small_boxes(open_dataset(options, split), config.skip_small_boxes)


def _make(options: StageOptions, job: Job, dataset: Dataset, config: ScoreConfig) -> None:
    with publish(job.request, force=options.force) as work:
        fill(options, job, dataset, config, work)


def fill(options: StageOptions, job: Job, dataset: Dataset, config: ScoreConfig, work: Work) -> None:
    """Write scores.json and outcomes.csv of a row into the work folder."""
    label = f"score {job.row.name} {job.split}"
    outcomes = []
    with progress(options, label, dataset.n_expressions) as advance:
        for outcome in _evaluate(options, job, dataset):
            outcomes.append(outcome)
            advance(outcome.weight)
    save_outcomes(work.path / OUTCOMES, outcomes)
    n_empty = sum(outcome.weight for outcome in outcomes if outcome.is_empty)
    work.counts |= {"refs": len(dataset.refs), "sentences": dataset.n_expressions, "empty": n_empty}
    if 2 * n_empty >= dataset.n_expressions:
        say(options, f"warning: {label}: {n_empty:,} of {dataset.n_expressions:,} masks are empty")
    n_all, expected = open_dataset(options, job.split).n_expressions, card_of(options).splits[job.split]
    estimates = summarise(outcomes, config.bootstrap, options.seed)
    scores = {
        "dataset": job.request.dataset,
        **job.request.flags,
        **work.counts,
        "partial": None if n_all == (expected or n_all) else {"sentences": n_all, "expected": expected},
        "configuration": dict(job.request.configuration),
        "inputs": dict(job.request.inputs),
        "metrics": {name: asdict(estimate) for name, estimate in estimates.items()},
    }
    write_json(work.path / SCORES, scores)


def _evaluate(options: StageOptions, job: Job, dataset: Dataset) -> Iterator[Outcome]:
    """The outcomes of a row, one by one."""
    from ris_pipeline.maps.store import ResponseStore
    from ris_pipeline.scoring import evaluate

    if job.source is None:
        return evaluate.evaluate_chance(dataset, options.seed)
    if job.row.kind == "labels":
        return evaluate.evaluate_pseudolabels(dataset, job.source.path)
    if job.row.kind == "network":
        return _evaluate_step2(options, job.source, dataset)
    of_maps: Callable[..., Iterator[Outcome]] = (
        evaluate.evaluate_choice if job.row.kind == "choice" else evaluate.evaluate_maps
    )
    return of_maps(dataset, ResponseStore.open(store_path(job.source.path, job.split)))


def _evaluate_step2(options: StageOptions, step2: Artifact, dataset: Dataset) -> Iterator[Outcome]:
    from ris_pipeline.methods.tris import load_network
    from ris_pipeline.process.device import autocast
    from ris_pipeline.scoring.evaluate import evaluate_network

    device = device_of(options)
    with autocast(device, options.precision):
        yield from evaluate_network(dataset, load_network(step2, device), batch_size=16)


def _show(options: StageOptions, scores: Sequence[Score], metric: str) -> None:
    """Prints the rows that have a chosen metric; RisError where none has."""
    chosen = select_metrics(metric)
    shown = [score for score in scores if any(name in score.metrics for name in chosen)]
    if not shown and all(score.row.kind == "labels" for score in scores):
        raise RisError(f"{metric}: a pseudo-label is a mask and points nowhere; choose miou, oiou, prec or box")
    if not shown:
        require_metric(scores[0].metrics, chosen[0])
    columns = [name for name in chosen if any(name in score.metrics for score in shown)]
    if metric == "all" and "miou" in columns:
        columns = [name for name in HEADLINE if name in columns]
        say(options, "also scored: prec@0.6 to 0.9 and boxes; print them by --metric prec, --metric box or --json")
    shown = [
        replace(score, metrics={name: score.metrics[name] for name in chosen if name in score.metrics})
        for score in shown
    ]
    title = f"{card_of(options).name}: percent ± half of the 95 % interval (bootstrap over refs)"
    lines = [title, render_scores(shown, columns), *_remarks(shown)]
    emit(options, "\n".join(lines), [score.to_json() for score in shown])


def _remarks(scores: Sequence[Score]) -> list[str]:
    """Lines below the table on rows that are not what they seem: parts of a split, and what is stale."""
    parts = {score.split: score.partial for score in scores if score.partial}
    lines = [
        f"* partial: {part['sentences']:,} of the {part['expected']:,} sentences of {split}"
        for split, part in parts.items()
    ]
    return lines + [f"† {score.row.name} {score.split} is stale: {score.stale[0]}" for score in scores if score.stale]


def render_scores(scores: Sequence[Score], columns: Sequence[str]) -> str:
    """Return the table: percent ± half of the 95 % interval, the paper's figure in a column of its own."""
    with_paper = {name for name in columns if any(name in score.paper for score in scores)}
    titles = ["scored", "split", "sentences"]
    for name in columns:
        titles += [name, "paper"] if name in with_paper else [name]
    sections: dict[str, list[list[str]]] = {}
    for score in scores:
        marks = ("*" if score.partial else "") + ("†" if score.stale else "")
        cells = [score.row.name + marks, score.split, f"{score.n_sentences:,}"]
        for name in columns:
            cells.append(_format(score.metrics.get(name), score.n_sentences))
            if name in with_paper:
                cells.append(f"{score.paper[name]:.2f}" if name in score.paper else "")
        sections.setdefault(score.split, []).append(cells)
    return draw_table(titles, list(sections.values()), n_words=2)


def _format(estimate: Estimate | None, n_sentences: int) -> str:
    """The score with half of its interval, and what it was counted on where that is not all sentences of the row."""
    if estimate is None:
        return "–"
    part = f" (n={estimate.n_expressions:,})" if estimate.n_expressions < n_sentences else ""
    return f"{estimate.value:.1f} ±{(estimate.ci_high - estimate.ci_low) / 2:.1f}{part}"
