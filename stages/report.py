"""`ris report`: everything that the stages of a data set made → one HTML file that opens from a disk."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ris_pipeline.artifacts.files import render_json, write_bytes
from ris_pipeline.artifacts.find import find
from ris_pipeline.artifacts.layout import REPORT, STAGE_ROWS
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.config import ReportConfig
from ris_pipeline.errors import RisError
from ris_pipeline.report.sources import Sources, find_sources
from ris_pipeline.report.stages import StageRow, list_stages
from stages.common import command_line, device_of, due, open_dataset, request_of, resolve_config, splits_of
from stages.options import StageOptions, card_of, emit
from stages.progress import progress
from stages.status import freshness_of


def run(options: StageOptions, splits: Sequence[str] | None, samples: int | None, out: Path | None) -> None:
    """Write the report, unless nothing has changed since the last one; print where it lies."""
    config = resolve_config(options, ReportConfig, "report", **({} if samples is None else {"samples": samples}))
    type_command = functools.partial(command_line, options)
    sources = find_sources(options.runs, card_of(options).name, splits_of(options, splits), type_command)
    stages = list_stages(freshness_of(options), type_command)
    flags = {"split": "+".join(splits)} if splits else {}
    request = request_of(options, "report", config, inputs=sources.artifacts, flags=flags)
    report = find(request)
    shown = render_json([asdict(row) for row in stages])
    changed = report is not None and (report.path / STAGE_ROWS).read_text(encoding="utf-8") != shown
    if due(options, request, "a stage was run again, or became fresh or stale" if changed else ""):
        with publish(request, force=options.force or changed) as work:
            _make(options, config, sources, stages, work)
            write_bytes(work.path / STAGE_ROWS, shown.encode())
    report = find(request)
    if report is not None and not options.dry_run:
        path = out or request.path / REPORT
        if out:
            _copy(report.path / REPORT, out)
        emit(options, str(path), {**report.manifest, "path": str(path)})


def _copy(report: Path, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, report.read_bytes())
    except OSError as error:
        raise RisError(f"{out}: cannot write the report there: {error.strerror or error}") from error


def _make(
    options: StageOptions, config: ReportConfig, sources: Sources, stages: Sequence[StageRow], work: Work
) -> None:
    from ris_pipeline.report.page import make_cards, make_page, render
    from ris_pipeline.report.samples import draw_samples

    datasets = {split: open_dataset(options, split) for split in sources.splits}
    samples = draw_samples(sources, datasets, config.samples, options.seed)
    with progress(options, "report", len(samples)) as advance:
        cards = make_cards(sources, datasets, samples, config.side, device_of(options), advance)
    page = make_page(sources, card_of(options), datasets, stages, cards, config, options.seed)
    (work.path / REPORT).write_text(render(page), encoding="utf-8")
    work.counts |= {"samples": len(cards)}
