"""Chance, response maps, pseudo-labels and Step-2 against boxes and masks: an artifact per row and split.

It holds scores.json with every metric, and outcomes.csv with a line per sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ris_pipeline.artifacts.files import write_json
from ris_pipeline.artifacts.find import find, walk_behind
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import OUTCOMES, SCORES, TRAIN_SPLIT, store_path
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.chain.publish import publish_together
from ris_pipeline.config import ScoreConfig
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import EmptySplitError, MadeMeanwhileError, RisError
from ris_pipeline.process.ranks import agree, gather, in_turn, is_first, joined, share
from ris_pipeline.scoring.metrics import Outcome, summarise
from ris_pipeline.scoring.outcomes import save_outcomes
from ris_pipeline.scoring.rows import Row, Tier, list_rows, mark_test_time
from ris_pipeline.scoring.scores import Score, add_stored_oracle, read_score

if TYPE_CHECKING:
    from ris_pipeline.datasets.records import Dataset

BATCH_SIZE = 16  # images that Step-2 segments at once


@dataclass(frozen=True, slots=True)
class _Job:
    """A score to compute: what is scored on which split, read from which artifact."""

    row: Row
    split: str
    source: Artifact | None
    request: Request


@joined()
def score(
    data: Context | Card | Path | str,
    config: ScoreConfig | Mapping[str, Any] | None = None,
    *,
    splits: Sequence[str] | None = None,
    stage: str | None = None,
    row: str | None = None,
    test_time: Sequence[str] = (),
    **places: Unpack[Places],
) -> list[Score]:
    """Score everything that has been made, or a single stage, unless that is done; return the scores, split by split.

    `splits`: all of the card if None. `stage`: as `scoring.rows` names them: "step1", "prms", "pseudolabels", "step2",
    … `row`: a single row of the table. `test_time`: some of `scoring.rows.TEST_TIME`; only networks are scored then, in
    rows of their own. The others and errors as in `train_step1`.
    """
    context = open_context(data, **places)
    resolved = context.resolve(ScoreConfig, "scores", config)
    scores = []
    without_truth = set()
    for job in agree(lambda: _plan(context, resolved, config, splits, stage, row, test_time)):
        try:
            is_new = agree(lambda: context.force or find(job.request) is None)  # noqa: B023 - called at once
            if is_new and not context.open_dataset(job.split).has_truth:
                without_truth.add(job.split)
                continue
        except EmptySplitError:
            if splits:
                raise
            context.say(f"{context.card.name} {job.split}: the data hold nothing of this split")
            continue
        if context.is_due(job.request):
            _make(context, job, resolved)
        artifact = find(job.request)
        if artifact is not None:
            stale = context.freshness.reasons(job.source) if job.source is not None else []
            scores.append(replace(read_score(artifact), path=str(job.request.path), stale=_drop_settings(stale)))
    if without_truth:
        context.say(
            f"{context.card.name} {', '.join(sorted(without_truth))}: no ref has a box or a mask, so there is no "
            "ground truth and nothing is scored; add boxes or masks, or look at the masks that `ris predict` writes"
        )
    # The card's figures hold for its own settings only.
    own = not (context.preset or context.config_file or context.assignments or config or row or test_time)
    return add_stored_oracle(scores, context.card.oracle) if own else scores


def _drop_settings(reasons: Sequence[str]) -> list[str]:
    """Drop the reasons that make no score wrong: another configuration now, or inputs deleted since."""
    return [line for line in reasons if not (line.startswith("configuration.") or line.endswith("→ missing"))]


def _plan(
    context: Context,
    config: ScoreConfig,
    settings: Any,
    splits: Sequence[str] | None,
    stage: str | None,
    name: str | None,
    test_time: Sequence[str],
) -> list[_Job]:
    """Return what to score; say what lacks its artifact, or raise RisError if `stage` asks for it."""
    jobs: list[_Job] = []
    missing: dict[str, list[str]] = {}
    for split in context.find_splits(splits):
        base = context.request("scores", config, settings=settings, flags={"split": split})
        wanted = [
            row for row in list_rows()
            if stage in (None, row.stage) and name in (None, row.name) and row.applies_to(split, chosen=bool(splits))
        ]  # fmt: skip
        if test_time:
            wanted = [mark_test_time(row, test_time) for row in wanted if row.kind == "network"]
        sources = {row.name: row.find_source(context.look_up, split) for row in wanted}
        found = [row for row in wanted if not row.source or sources[row.name]]
        if stage and wanted and not found:
            command = context.command(wanted[0].command.format(split=split))
            raise RisError(f"{base.dataset} {split}: nothing of {stage} to score yet; run: {command}")
        for row in wanted:
            source = sources[row.name]
            if row in found:
                inputs = {**base.inputs, source.name: source.digest} if source else base.inputs
                flags = {"scored": row.name, "split": split}
                precision = base.precision if row.kind == "network" else "fp32"  # others only read what is stored
                request = replace(base, inputs=inputs, flags=flags, precision=precision)
                jobs.append(_Job(row, split, source, request))
            elif not row.optional:
                missing.setdefault(row.command.format(split=split), []).append(f"{row.name} {split}")
    for command, names in missing.items():
        context.say(f"left out, not made yet: {', '.join(names)}; run: {context.command(command)}")
    if stage and not jobs:
        chosen = ", ".join(context.find_splits(splits))
        networks = f"; --{test_time[0]} is for networks, as step2" if test_time else ""
        raise RisError(
            f"{stage} is not scored on {chosen}: pseudo-labels are of train only; for step2 name --split{networks}"
        )
    return jobs


def _make(context: Context, job: _Job, config: ScoreConfig) -> None:
    """Score every sentence, and publish the row."""
    from ris_pipeline.datasets.records import count_expressions
    from ris_pipeline.scoring.evaluate import in_order, leave_out_small_boxes

    everything = context.open_dataset(job.split)
    dataset = leave_out_small_boxes(everything, config.skip_small_boxes)
    n_all = count_expressions((*everything.refs, *everything.absent))
    expected = context.card.splits[job.split]
    label = f"score {job.row.name} {job.split}"
    with suppress(MadeMeanwhileError), publish_together(context, job.request) as work:
        own = []
        with context.progress(label, dataset.n_expressions) as advance:
            for outcome in _evaluate(context, job, dataset):
                own.append(outcome)
                advance(outcome.weight)
        outcomes = in_order(dataset, chain.from_iterable(gather(own)))
        if not is_first():
            return
        save_outcomes(work.path / OUTCOMES, outcomes)
        n_empty = sum(outcome.weight for outcome in outcomes if outcome.is_empty)
        work.counts |= {"refs": len(dataset.refs), "sentences": dataset.n_expressions, "empty": n_empty}
        if 2 * n_empty >= dataset.n_expressions:
            context.say(f"warning: {label}: {n_empty:,} of {dataset.n_expressions:,} masks are empty")
        estimates = summarise(outcomes, config.bootstrap, context.seed)
        scores = {
            "dataset": job.request.dataset,
            **job.request.flags,
            **work.counts,
            "partial": None if n_all == (expected or n_all) else {"sentences": n_all, "expected": expected},
            "configuration": dict(job.request.configuration),
            "inputs": dict(job.request.inputs),
            "supervision": _find_tier(context, job),
            "metrics": {name: asdict(estimate) for name, estimate in estimates.items()},
        }
        write_json(work.path / SCORES, scores)


def _find_tier(context: Context, job: _Job) -> Tier:
    """Return the supervision behind what is scored; to choose an epoch by the truth of a split is one."""
    behind = walk_behind(context.runs / job.request.dataset, job.request.inputs)
    selected = any(found.manifest["configuration"].get("select", "last") != "last" for found in behind)
    return "boxes or masks" if selected else job.row.tier


def _evaluate(context: Context, job: _Job, dataset: Dataset) -> Iterator[Outcome]:
    """Yield the outcomes of a row, of the images that fall to this process."""
    from ris_pipeline.maps.at_test_time import N_DRAWN, apply_test_time
    from ris_pipeline.maps.compete import draw_sentences
    from ris_pipeline.maps.store import ResponseStore
    from ris_pipeline.methods.load import load_network
    from ris_pipeline.process.device import autocast
    from ris_pipeline.refine.masks import clean_masks
    from ris_pipeline.refine.mean_field import refine_on
    from ris_pipeline.scoring import evaluate

    if job.source is None:
        yield from evaluate.evaluate_chance(dataset, context.seed, share)
    elif job.row.kind == "labels":
        yield from evaluate.evaluate_pseudolabels(dataset, job.source.path, share)
    elif job.row.kind == "network":
        with autocast(context.device, context.precision):
            network = in_turn(partial(load_network, job.source, context.device))
            options = job.row.test_time
            responder = apply_test_time(
                network, options, lambda: draw_sentences(context.open_dataset(TRAIN_SPLIT), N_DRAWN, 0)
            )
            clean = partial(clean_masks, refine=refine_on(context.device)) if "crf" in options else None
            yield from evaluate.evaluate_network(
                dataset, responder, BATCH_SIZE, clean, share, compete="compete" in options
            )
    else:
        store = ResponseStore.open(store_path(job.source.path, job.split))
        of_maps = evaluate.evaluate_choice if job.row.kind == "choice" else evaluate.evaluate_maps
        yield from of_maps(dataset, store, share)
