"""`ris report`: everything that the stages of a data set made → one HTML file that opens from a disk."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.artifacts.files import write_json
from ris_pipeline.artifacts.find import find, list_latest
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import REPORT, STAGE_ROWS, STAGES
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import ReportConfig
from ris_pipeline.errors import RisError
from ris_pipeline.report.stage_rows import StageRow
from ris_pipeline.scoring.rows import ROWS, find_improvement
from stages.common import command_line, due, open_dataset, request_of, resolve_config
from stages.options import StageOptions, card_of, emit, say
from stages.progress import progress
from stages.report_inputs import Found, find_artifacts, open_sources, read_curves, read_outcomes, read_scores
from stages.status import freshness_of

if TYPE_CHECKING:
    from ris_pipeline.datasets import Dataset
    from ris_pipeline.report.cards import Card
    from ris_pipeline.report.page import Breakdown
    from ris_pipeline.report.samples import Sample

_OPTIONAL = ("clip", "irnet")  # stages that a data set may do without: not shown where they have not run


def run(options: StageOptions, splits: Sequence[str] | None, samples: int | None, out: Path | None) -> None:
    """Write the report, unless nothing has changed since the last one; print where it lies."""
    config = resolve_config(options, ReportConfig, "report", **({} if samples is None else {"samples": samples}))
    found = find_artifacts(options, splits)
    stages = list_stages(options)
    flags = {"split": "+".join(splits)} if splits else {}
    request = request_of(options, "report", config, inputs=found.artifacts, flags=flags)
    if not options.force and _shows_other_stages(find(request), stages):
        say(options, "report: a stage was run again, or became fresh or stale")
        options = replace(options, force=True)
    if due(options, request):
        with publish(request, force=options.force) as work:
            _make(options, config, found, stages, work)
    report = find(request)
    if report is not None and not options.dry_run:
        path = _copy(report.path / REPORT, out) if out else request.path / REPORT
        emit(options, str(path), {**report.manifest, "path": str(path)})


def _copy(report: Path, out: Path) -> Path:
    """The report at `out`, whole or not at all."""
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(report, unfinished)
        unfinished.replace(out)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RisError(f"{out}: cannot write the report there: {error.strerror or error}") from error
    return out


def list_stages(options: StageOptions) -> list[StageRow]:
    """A row per latest artifact, and one for each stage that has none."""
    rows, freshness = [], freshness_of(options)
    for stage in STAGES:
        if stage == "report":
            continue
        artifacts = list_latest(options.runs, card_of(options).name, stage).values()
        rows += [_stage_row(artifact, freshness.reasons(artifact)) for artifact in artifacts]
        if not artifacts and stage not in _OPTIONAL:
            rows.append(StageRow(stage, "missing", f"run: {command_line(options, STAGES[stage].command)}"))
    return rows


def _stage_row(artifact: Artifact, reasons: Sequence[str]) -> StageRow:
    manifest = artifact.manifest
    return StageRow(
        name=artifact.name,
        state="stale" if reasons else "fresh",
        why="; ".join(reasons),
        finished=manifest["finished"],
        seconds=manifest["timings"]["total"],
        n_bytes=manifest["files"]["bytes"],
        digest=artifact.digest,
        reads=tuple(manifest["inputs"]),
        configuration=manifest["configuration"],
    )


def _shows_other_stages(report: Artifact | None, stages: Sequence[StageRow]) -> bool:
    """Whether a report shows times or states that the stages no longer have."""
    return report is not None and json.loads((report.path / STAGE_ROWS).read_text(encoding="utf-8")) != _as_json(stages)


def _as_json(stages: Sequence[StageRow]) -> Any:
    return json.loads(json.dumps([asdict(row) for row in stages]))


def _make(options: StageOptions, config: ReportConfig, found: Found, stages: Sequence[StageRow], work: Work) -> None:
    from ris_pipeline.report.compose import chart_curves, chart_scores, chart_stages
    from ris_pipeline.report.page import Page, render

    datasets = {split: open_dataset(options, split) for split in found.splits}
    scores = read_scores(options, found)
    breakdowns = [one for dataset in datasets.values() if (one := _break_down(options, config, found, dataset))]
    cards, columns = _make_cards(options, config, found, datasets)
    page = Page(
        dataset=card_of(options).name,
        newest=max((row.finished for row in stages), default=""),
        scores=scores,
        score_charts=chart_scores(scores),
        has_paper=any(score.paper for score in scores),
        curves=chart_curves(read_curves(found)),
        graph=chart_stages(stages),
        stages=stages,
        breakdowns=breakdowns,
        columns=columns,
        cards=cards,
        seed=options.seed,
        has_truth=any(
            ref.box_xyxy is not None or ref.segmentation is not None
            for dataset in datasets.values()
            for ref in dataset.refs
        ),
    )
    (work.path / REPORT).write_text(render(page), encoding="utf-8")
    write_json(work.path / STAGE_ROWS, _as_json(stages))
    work.counts |= {"samples": len(cards)}


def _break_down(options: StageOptions, config: ReportConfig, found: Found, dataset: "Dataset") -> "Breakdown | None":
    from ris_pipeline.report.compose import break_down_split

    rows = [row for row, split in found.scores if split == dataset.split]
    outcomes = {row: read_outcomes(found, row, dataset.split) for row in rows}
    return break_down_split(dataset, outcomes, config.bootstrap, options.seed)


def _make_cards(
    options: StageOptions, config: ReportConfig, found: Found, datasets: "dict[str, Dataset]"
) -> "tuple[list[Card], dict[str, str]]":
    """The gallery's cards in the order in which they were drawn, and the titles of the columns that are scored."""
    from ris_pipeline.report.cards import make_card
    from ris_pipeline.report.panels import read_rows

    samples = draw_samples(options, found, datasets, config.samples)
    sources = open_sources(options, found)
    cards = {}
    with progress(options, "report", len(samples)) as advance:
        for row in read_rows(datasets, samples, sources):
            sample = row.sample
            cards[sample.split, sample.ref.ref_id] = make_card(
                row, datasets[sample.split], sources.columns, config.side
            )
            advance()
    in_order = [cards[sample.split, sample.ref.ref_id] for sample in samples]
    scored = {key for card in in_order for key in card.scores}
    return in_order, {column.key: column.title for column in sources.columns if column.key in scored}


def draw_samples(options: StageOptions, found: Found, datasets: "dict[str, Dataset]", n_samples: int) -> "list[Sample]":
    """Samples of the data sets whose splits have responses, equally many of each; the first have what is left over."""
    from ris_pipeline.report.samples import choose_samples, compute_changes

    samples = []
    splits = [split for split in datasets if split in found.responses]
    for k, split in enumerate(splits):
        n = n_samples // len(splits) + (k < n_samples % len(splits))
        outcomes = {row.name: read_outcomes(found, row.name, split) for row in ROWS.values() if not row.is_compared}
        last = next((row for row in reversed(ROWS.values()) if row.tile and outcomes.get(row.name)), None)
        judged = outcomes[last.name] if last else []
        # The map that PRMS chose is of another sentence than the label it became.
        improved = find_improvement([row for row, of_row in outcomes.items() if of_row and ROWS[row].kind != "choice"])
        changes = compute_changes(*(outcomes[row] for row in improved)) if improved else {}
        samples += choose_samples(datasets[split], n, options.seed, judged, changes)
    return samples
