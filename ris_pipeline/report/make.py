"""Everything that the stages of a data set made → one HTML file that opens from a disk, or a figure for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ris_pipeline.artifacts.files import render_json, write_bytes
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import REPORT, STAGE_ROWS, TRAIN_SPLIT
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.chain.context import Context, Places, open_context
from ris_pipeline.chain.status import StatusRow, arrange, list_status
from ris_pipeline.config import ReportConfig
from ris_pipeline.datasets.card import Card
from ris_pipeline.errors import MadeMeanwhileError, RisError
from ris_pipeline.report.sources import Sources, find_sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ris_pipeline.datasets.records import Dataset
    from ris_pipeline.report.samples import Sample

N_ROWS = 6  # of a qualitative figure, where no refs are chosen


def make_report(
    data: Context | Card | Path | str,
    config: ReportConfig | Mapping[str, Any] | None = None,
    *,
    splits: Sequence[str] | None = None,
    **places: Unpack[Places],
) -> Artifact | None:
    """Write the report of a data set, unless nothing has changed since the last one, and return its artifact.

    It holds report.html. Arguments and errors as in `chain.train.train_step1`; `splits`: all of the card if None.
    """
    context = open_context(data, **places)
    resolved = context.resolve(ReportConfig, "report", config)
    sources = _find_sources(context, splits)
    stages = [
        row for row in list_status(context, {}) if row.state in ("fresh", "stale", "missing") and row.stage != "report"
    ]
    flags: dict[str, str | bool] = {"split": "+".join(splits)} if splits else {}
    request = context.request("report", resolved, settings=config, inputs=sources.artifacts, flags=flags)
    report = find(request)
    shown = render_json([[row.artifact, row.state, row.digest, *row.why] for row in stages])
    has_changed = report is not None and (report.path / STAGE_ROWS).read_text(encoding="utf-8") != shown
    if context.is_due(request, "a stage was run again, or became fresh or stale" if has_changed else ""):
        with suppress(MadeMeanwhileError), publish(request, force=context.force or has_changed) as work:
            _write(context, resolved, sources, stages, work)
            write_bytes(work.path / STAGE_ROWS, shown.encode())
    return find(request)


def _find_sources(context: Context, splits: Sequence[str] | None) -> Sources:
    return find_sources(context.runs, context.card.name, context.find_splits(splits), context.command)


def _write(context: Context, config: ReportConfig, sources: Sources, stages: Sequence[StatusRow], work: Work) -> None:
    from ris_pipeline.report.breakdown import break_down
    from ris_pipeline.report.page import Page, make_cards, render
    from ris_pipeline.report.samples import draw_samples

    datasets = {split: context.open_dataset(split) for split in sources.splits}
    samples = draw_samples(sources, datasets, config.samples, context.seed)
    with context.console.progress("report", len(samples)) as advance:
        cards = make_cards(sources, datasets, samples, config.side, context.device, advance)
    page = Page(
        dataset=context.card.name,
        scores=sources.read_scores(context.card.oracle),
        curves=sources.read_curves(),
        stages=arrange(stages),
        breakdowns={
            split: break_down(dataset, sources.read_outcomes(split), sources.n_bootstrap, context.seed)
            for split, dataset in datasets.items()
        },
        labels=sources.labels,
        cards=cards,
        seed=context.seed,
        has_truth=any(dataset.has_truth for dataset in datasets.values()),
    )
    (work.path / REPORT).write_text(render(page), encoding="utf-8")
    work.counts |= {"samples": len(cards)}


def copy_report(report: Artifact, out: Path) -> None:
    """Copy the report to the file `out`, which is never half written. RisError where it cannot be."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, (report.path / REPORT).read_bytes())
    except OSError as error:
        raise RisError(f"{out}: cannot write the report there: {error.strerror or error}") from error


def draw_figure(context: Context, kind: str, *, splits: Sequence[str] | None, refs: Sequence[int]) -> Figure | None:
    """Return a figure: "qualitative" rows of some refs, or training "curves"; None in a dry run.

    `refs`: ids of the rows; by default some of the split with the most columns. Raises RisError where what it would
    show has not been made.
    """
    from ris_pipeline.report.charts import draw_curves

    if refs and kind != "qualitative":
        raise RisError(f"--ref chooses the rows of `ris figure qualitative`; {kind} has none")
    sources = _find_sources(context, splits)
    if context.dry_run:
        return None
    if kind == "qualitative":
        return _draw_qualitative(context, sources, refs)
    if curves := sources.read_curves():
        return draw_curves(curves, titled=True)
    raise RisError(f"no training has left its losses yet; run: {context.command('ris train-step1')}")


def _draw_qualitative(context: Context, sources: Sources, refs: Sequence[int]) -> Figure:
    from ris_pipeline.report.samples import draw_samples, find_sample

    datasets = {split: context.open_dataset(split) for split in sources.splits_with_maps}
    if refs:
        samples = [find_sample(datasets, ref_id) for ref_id in refs]
    else:
        # The split with the most columns: only train has pseudo-labels.
        full = TRAIN_SPLIT if ("pseudo-refined", TRAIN_SPLIT) in sources.shown else next(iter(datasets))
        samples = draw_samples(sources, {full: datasets[full]}, N_ROWS, context.seed)
    return _draw_samples(context, sources, datasets, samples)


def draw_columns(context: Context, sources: Sources, refs: Sequence[int]) -> Figure:
    """Return "qualitative" rows with the columns of `sources`, which are of one split; `refs` as in `draw_figure`.

    Which columns there are decides nothing of which refs are shown: without `refs` they are drawn at random.
    """
    from ris_pipeline.report.samples import choose_samples, find_sample

    (split,) = sources.splits
    datasets = {split: context.open_dataset(split)}
    chosen = [find_sample(datasets, ref_id) for ref_id in refs]
    return _draw_samples(
        context, sources, datasets, chosen or choose_samples(datasets[split], N_ROWS, context.seed, (), {})
    )


def _draw_samples(
    context: Context, sources: Sources, datasets: Mapping[str, Dataset], samples: Sequence[Sample]
) -> Figure:
    from ris_pipeline.report.figures import draw_qualitative
    from ris_pipeline.report.panels import read_strips

    strips = {
        (strip.sample.split, strip.sample.ref.ref_id): strip
        for strip in read_strips(sources, datasets, samples, context.device)
    }
    return draw_qualitative([strips[sample.split, sample.ref.ref_id] for sample in samples])
