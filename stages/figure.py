"""`ris figure`: sample rows, loss curves or the score table → a PNG or PDF for a paper."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ris_pipeline.errors import RisError
from ris_pipeline.report.sources import Sources, find_sources
from ris_pipeline.scoring.rows import LABELS_SPLIT
from stages.common import command_line, device_of, open_dataset, splits_of
from stages.options import StageOptions, card_of, emit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_ROWS = 6  # of a qualitative figure, where no refs are chosen


def run(options: StageOptions, kind: str, out: Path, splits: Sequence[str] | None, refs: Sequence[int] | None) -> None:
    """Draw one kind of figure into `out`, and print its path."""
    from ris_pipeline.report.charts import draw_curves
    from ris_pipeline.report.figures import check_format, draw_table, save_figure

    check_format(out)
    if refs and kind != "qualitative":
        raise RisError(f"--ref chooses the rows of `ris figure qualitative`; {kind} has none")
    type_command = functools.partial(command_line, options)
    sources = find_sources(options.runs, card_of(options).name, splits_of(options, splits), type_command)
    if options.dry_run:
        return
    if kind == "qualitative":
        figure = _draw_qualitative(options, sources, refs or ())
    elif kind == "curves":
        curves = sources.read_curves()
        if not curves:
            raise RisError(f"no training has left its losses yet; run: {type_command('ris train-step1')}")
        figure = draw_curves(curves, titled=True)
    else:
        scores = sources.read_scores(card_of(options).oracle)
        if not scores:
            raise RisError(f"nothing has been scored yet; run: {type_command('ris score')}")
        figure = draw_table(scores)
    save_figure(figure, out)
    emit(options, str(out), {"figure": kind, "path": str(out)})


def _draw_qualitative(options: StageOptions, sources: Sources, refs: Sequence[int]) -> Figure:
    from ris_pipeline.report.figures import draw_qualitative
    from ris_pipeline.report.panels import read_strips
    from ris_pipeline.report.samples import draw_samples, find_sample

    datasets = {split: open_dataset(options, split) for split in sources.splits_with_maps}
    if refs:
        samples = [find_sample(datasets, ref_id) for ref_id in refs]
    else:
        # The split with the most columns: only train has pseudo-labels.
        full = LABELS_SPLIT if ("pseudo-refined", LABELS_SPLIT) in sources.shown else next(iter(datasets))
        samples = draw_samples(sources, {full: datasets[full]}, N_ROWS, options.seed)
    strips = {
        (strip.sample.split, strip.sample.ref.ref_id): strip
        for strip in read_strips(sources, datasets, samples, device_of(options))
    }
    return draw_qualitative([strips[sample.split, sample.ref.ref_id] for sample in samples])
