"""`ris score`: chance, response maps, pseudo-labels and Step-2 against boxes and masks → one table.

Each row is an artifact of its own: scores.json with every metric, outcomes.csv with a line per sentence.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ris_pipeline.artifacts.files import write_json
from ris_pipeline.artifacts.find import find, find_latest
from ris_pipeline.artifacts.identity import Artifact, Request
from ris_pipeline.artifacts.layout import OUTCOMES, SCORES, store_path
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import ScoreConfig, Step2Config
from ris_pipeline.errors import EmptySplitError, RisError
from ris_pipeline.scoring.metrics import METRICS, Outcome, require_metric, summarise
from ris_pipeline.scoring.outcomes import save_outcomes
from ris_pipeline.scoring.paper import paper_figure
from stages.common import command_line, device_of, due, open_dataset, request_of, resolve_config, splits_of
from stages.options import StageOptions, card_of, emit, say
from stages.progress import progress
from stages.status import freshness_of

if TYPE_CHECKING:
    from ris_pipeline.datasets import Card, Dataset

HEADLINE = ("pointit", "pointm", "miou", "oiou", "prec@0.5")  # of --metric all, to fit the width
WIDTH = 120  # columns of the table


@dataclass(frozen=True, slots=True)
class Scored:
    """One kind of row: what is scored, and the artifact that it is read from."""

    name: str  # in the table and in the flags of its artifacts
    stage: str  # as --stage has it
    source: str = ""  # stage of the artifact that is read
    flags: Mapping[str, str | bool] = field(default_factory=dict)  # of that artifact, beside the split
    command: str = ""  # makes that artifact
    paper: str = ""  # its name in the paper's tables

    def find_source(self, options: StageOptions, split: str) -> Artifact | None:
        """The artifact to read, None where there is none."""
        flags = {"split": split} if self.source == "responses" else self.flags
        artifact = find_latest(options.runs, card_of(options).name, self.source, **flags)
        if artifact and self.name == "prms" and not artifact.manifest["configuration"]["prms"]:
            return None
        return artifact


_DUMP = "ris dump-responses --split {split}"
SCORED = (
    Scored("chance", "chance"),
    Scored("step1", "step1", "responses", {}, _DUMP, "Step-1"),
    Scored("prms", "prms", "responses", {}, f"{_DUMP} --set prms=true", "PRMS"),
    # Without refinement the labels are the maps that PRMS selected.
    Scored("pseudo-plain", "pseudolabels", "pseudolabels", {"refine": False},
           "ris make-pseudolabels --no-refine", "PRMS"),
    Scored("pseudo-refined", "pseudolabels", "pseudolabels", {"refine": True},
           "ris make-pseudolabels --refine", "PRMS + R"),
    Scored("step2", "step2", "step2", {"labels": "pseudo"}, "ris train-step2", "Step-2"),
    Scored("step2-oracle", "step2", "step2", {"labels": "true"}, "ris train-step2 --oracle"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One row to be: what to score, on which split, read from which artifact."""

    scored: Scored
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
    def load(split: str) -> "Dataset":
        return open_scored(options, split, config)

    freshness = freshness_of(options)
    rows, unlabelled = [], set()
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
            rows.append(_read_row(artifact, job) | ({"stale": stale} if stale else {}))
    if unlabelled:
        say(
            options,
            f"{card_of(options).name} {', '.join(sorted(unlabelled))}: no ref has a box or a mask, so there is no "
            "ground truth and nothing is scored; add boxes or masks, or look at the masks that `ris predict` writes",
        )
    if rows:
        # The card's figures are of its own settings.
        own = not (options.config or options.set)
        _show(options, _with_stored_oracle(card_of(options), rows) if own else rows, metric)
    elif options.json:
        emit(options, "", [])


def _with_stored_oracle(card: "Card", rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and behind Step-2's the oracle's figures that the card keeps, where the oracle was not made here."""
    made = {row["split"] for row in rows if row["scored"] == "step2-oracle"}
    shown = []
    for row in rows:
        shown.append(row)
        is_whole = not row.get("partial")
        if row["scored"] == "step2" and is_whole and row["split"] in card.oracle and row["split"] not in made:
            metrics = {
                name: {"value": value, "ci_low": low, "ci_high": high}
                for name, (value, low, high) in card.oracle[row["split"]].items()
            }
            shown.append({**row, "scored": "oracle, stored", "metrics": metrics, "paper": {}, "path": ""})
    return shown


def _plan(options: StageOptions, config: ScoreConfig, splits: Sequence[str] | None, stage: str | None) -> list[Job]:
    """The rows to make; what cannot be made for want of an artifact is told, or an error if asked for by --stage."""
    jobs = []
    missing: dict[str, list[str]] = {}
    for split in splits_of(options, splits):
        base = request_of(options, "scores", config, flags={"split": split})
        wanted = [one for one in SCORED if stage in (None, one.stage) and _applies(one, split, chosen=bool(splits))]
        sources = {one.name: one.find_source(options, split) for one in wanted}
        found = [one for one in wanted if not one.source or sources[one.name]]
        if stage and wanted and not found:
            command = wanted[0].command.format(split=split)
            raise RisError(
                f"{base.dataset} {split}: nothing of {stage} to score yet; run: {command_line(options, command)}"
            )
        for one in wanted:
            if one in found:
                jobs.append(_job(one, split, sources[one.name], base))
            elif one.name != "step2-oracle":
                missing.setdefault(one.command.format(split=split), []).append(f"{one.name} {split}")
    for command, names in missing.items():
        say(options, f"left out, not made yet: {', '.join(names)}; run: {command_line(options, command)}")
    if stage and not jobs:
        chosen = ", ".join(splits_of(options, splits))
        raise RisError(f"{stage} is not scored on {chosen}: pseudo-labels are of train only; for step2 name --split")
    return jobs


def _job(scored: Scored, split: str, source: Artifact | None, base: Request) -> Job:
    inputs = {**base.inputs, source.name: source.digest} if source else base.inputs
    return Job(scored, split, source, replace(base, inputs=inputs, flags={"scored": scored.name, "split": split}))


def _applies(scored: Scored, split: str, *, chosen: bool) -> bool:
    """Whether there is such a row for the split; Step-2 is scored on what it learnt from only where that is chosen."""
    if scored.source == "pseudolabels":
        return split == "train"
    return scored.source != "step2" or split != "train" or chosen


def _has_ground_truth(dataset: "Dataset") -> bool:
    return any(ref.box_xyxy is not None or ref.segmentation is not None for ref in dataset.refs)


def open_scored(options: StageOptions, split: str, config: ScoreConfig) -> "Dataset":
    """The refs of the split that are scored."""
    from ris_pipeline.scoring.evaluate import leave_out_small_boxes

    return leave_out_small_boxes(open_dataset(options, split), config.skip_small_boxes)


def _make(options: StageOptions, job: Job, dataset: "Dataset", config: ScoreConfig) -> None:
    with publish(job.request, force=options.force) as work:
        fill(options, job, dataset, config, work)


def fill(options: StageOptions, job: Job, dataset: "Dataset", config: ScoreConfig, work: Work) -> None:
    """Write scores.json and outcomes.csv of a row into the work folder."""
    label = f"score {job.scored.name} {job.split}"
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


def _evaluate(options: StageOptions, job: Job, dataset: "Dataset") -> Iterator[Outcome]:
    """The outcomes of a row, one by one."""
    from ris_pipeline.maps.store import ResponseStore
    from ris_pipeline.scoring import evaluate

    if job.source is None:
        return evaluate.evaluate_chance(dataset, options.seed)
    if job.scored.source == "pseudolabels":
        return evaluate.evaluate_pseudolabels(dataset, job.source.path)
    if job.scored.source == "step2":
        return _evaluate_step2(options, job.source, dataset)
    of_maps: Callable[..., Iterator[Outcome]] = (
        evaluate.evaluate_prms if job.scored.name == "prms" else evaluate.evaluate_step1
    )
    return of_maps(dataset, ResponseStore.open(store_path(job.source.path, job.split)))


def _evaluate_step2(options: StageOptions, step2: Artifact, dataset: "Dataset") -> Iterator[Outcome]:
    from ris_pipeline.artifacts.layout import WEIGHTS
    from ris_pipeline.networks.load import build_step2, config_from_manifest
    from ris_pipeline.process.device import autocast
    from ris_pipeline.scoring.evaluate import evaluate_step2

    config = config_from_manifest(Step2Config, step2.manifest)
    device = device_of(options)
    network = build_step2(config, step2.path / WEIGHTS).to(device)
    with autocast(device, options.precision):
        yield from evaluate_step2(dataset, network, config.input_size, device)


def _read_row(artifact: Artifact, job: Job) -> dict[str, Any]:
    """What scores.json holds, where it lies, and the paper's figures for it by metric."""
    scores = json.loads((artifact.path / SCORES).read_text(encoding="utf-8"))
    figures = {name: paper_figure(job.request.dataset, job.split, job.scored.paper, name) for name in scores["metrics"]}
    # Of a part of the split there is nothing in the paper to compare with.
    paper = {name: figure for name, figure in figures.items() if figure is not None and not scores.get("partial")}
    return {**scores, "paper": paper, "path": str(job.request.path)}


def _show(options: StageOptions, rows: list[dict[str, Any]], metric: str) -> None:
    """Prints the rows that have a chosen metric; RisError where none has."""
    groups = {"all": METRICS, **{name: [m for m in METRICS if m.startswith(name)] for name in ("prec", "box")}}
    chosen = groups.get(metric, [metric])
    shown = [row for row in rows if any(name in row["metrics"] for name in chosen)]
    if not shown and all(row["scored"].startswith("pseudo") for row in rows):
        raise RisError(f"{metric}: a pseudo-label is a mask and points nowhere; choose miou, oiou, prec or box")
    if not shown:
        require_metric(rows[0]["metrics"], chosen[0])
    columns = [name for name in chosen if any(name in row["metrics"] for row in shown)]
    if metric == "all" and "miou" in columns:
        columns = [name for name in HEADLINE if name in columns]
        say(options, "also scored: prec@0.6 to 0.9 and boxes; print them by --metric prec, --metric box or --json")
    for row in shown:
        row["metrics"] = {name: row["metrics"][name] for name in chosen if name in row["metrics"]}
    emit(options, "\n".join([_render(shown, columns), *_remarks(shown)]), shown)


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines below the table on rows that are not what they seem: parts of a split, and what is stale."""
    lines = []
    parts = {row["split"]: row["partial"] for row in rows if row.get("partial")}
    for split, part in parts.items():
        lines.append(f"* partial: {part['sentences']:,} of the {part['expected']:,} sentences of {split}")
    for row in rows:
        if row.get("stale"):
            lines.append(f"† {row['scored']} {row['split']} is stale: {row['stale'][0]}")
    return lines


def _render(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The table as text: percent ± half of the 95 % interval, the paper's figure in a column of its own."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("scored", no_wrap=True)
    table.add_column("split", no_wrap=True)
    table.add_column("sentences", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
        if any(name in row["paper"] for row in rows):
            table.add_column("paper", justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        marks = ("*" if row.get("partial") else "") + ("†" if row.get("stale") else "")
        cells = [row["scored"] + marks, row["split"], f"{row['sentences']:,}"]
        for name in columns:
            cells.append(_format(row["metrics"].get(name), row["sentences"]))
            if any(name in one["paper"] for one in rows):
                cells.append(f"{row['paper'][name]:.2f}" if name in row["paper"] else "")
        last_of_split = i + 1 < len(rows) and rows[i + 1]["split"] != row["split"]
        table.add_row(*cells, end_section=last_of_split)
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(table)
    title = f"{rows[0]['dataset']}: percent ± half of the 95 % interval (bootstrap over refs)"
    # The box has an empty line above the header and below the last row.
    return "\n".join([title, *(line.rstrip() for line in capture.get().splitlines()[1:-1])])


def _format(estimate: Mapping[str, float] | None, n_sentences: int) -> str:
    """The score with half of its interval, and what it was counted on where that is not all sentences of the row."""
    if estimate is None:
        return "–"
    own = estimate.get("n_expressions", n_sentences)
    part = f" (n={own:,})" if own < n_sentences else ""
    return f"{estimate['value']:.1f} ±{(estimate['ci_high'] - estimate['ci_low']) / 2:.1f}{part}"
