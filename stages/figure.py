"""`ris figure`: sample rows, loss curves or the score table → a PNG or PDF for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ris_pipeline.errors import RisError
from ris_pipeline.scoring.metrics import HEADLINE
from ris_pipeline.scoring.rows import LABELS_SPLIT
from stages.common import command_line, open_dataset
from stages.options import StageOptions, card_of, emit
from stages.report import draw_samples
from stages.report_inputs import Found, find_artifacts, open_sources, read_curves, read_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ris_pipeline.datasets import Dataset
    from ris_pipeline.report.samples import Sample

N_ROWS = 6  # of a qualitative figure, where no refs are chosen


def run(options: StageOptions, kind: str, out: Path, splits: Sequence[str] | None, refs: Sequence[int] | None) -> None:
    """Draw one kind of figure into `out`, and print its path."""
    from ris_pipeline.report.figures import check_format, save_figure

    check_format(out)
    if refs and kind != "qualitative":
        raise RisError(f"--ref chooses the rows of `ris figure qualitative`; {kind} has none")
    found = find_artifacts(options, splits)
    if options.dry_run:
        return
    draw = {"qualitative": _draw_qualitative, "curves": _draw_curves, "table": _draw_table}[kind]
    save_figure(draw(options, found, refs or ()), out)
    emit(options, str(out), {"figure": kind, "path": str(out)})


def _draw_qualitative(options: StageOptions, found: Found, refs: Sequence[int]) -> Figure:
    from ris_pipeline.report.figures import draw_qualitative
    from ris_pipeline.report.panels import TRUTH, read_rows

    datasets = {split: open_dataset(options, split) for split in found.splits if split in found.responses}
    if refs:
        samples = [_find_ref(options, datasets, ref_id) for ref_id in refs]
    else:
        # The split with the most columns: only train has pseudo-labels.
        full = LABELS_SPLIT if found.labels and LABELS_SPLIT in datasets else next(iter(datasets))
        samples = draw_samples(options, found, {full: datasets[full]}, N_ROWS)
    sources = open_sources(options, found)
    rows = {(row.sample.split, row.sample.ref.ref_id): row for row in read_rows(datasets, samples, sources)}
    in_order = [rows[sample.split, sample.ref.ref_id] for sample in samples]
    refs_shown = [row.sample.ref for row in in_order]
    has_truth = any(ref.box_xyxy is not None or ref.segmentation is not None for ref in refs_shown)
    return draw_qualitative(in_order, [column for column in sources.columns if has_truth or column != TRUTH])


def _find_ref(options: StageOptions, datasets: dict[str, Dataset], ref_id: int) -> Sample:
    """The ref in whichever split has it, with its first sentence."""
    from ris_pipeline.report.samples import Sample

    for split, dataset in datasets.items():
        for ref in dataset.refs:
            if ref.ref_id == ref_id:
                return Sample(split, ref, ref.expressions[0], "random")
    known = [ref.ref_id for dataset in datasets.values() for ref in dataset.refs]
    nearest = min(known, key=lambda one: abs(one - ref_id))
    raise RisError(
        f"--ref {ref_id}: {card_of(options).name} has no such ref in {', '.join(datasets)}; the nearest is {nearest}"
    )


def _draw_curves(options: StageOptions, found: Found, refs: Sequence[int]) -> Figure:
    from ris_pipeline.report.figures import draw_all_curves

    curves = {title: own for title, own in read_curves(found).items() if own}
    if not curves:
        raise RisError(f"no training has left its losses yet; run: {command_line(options, 'ris train-step1')}")
    return draw_all_curves(curves)


def _draw_table(options: StageOptions, found: Found, refs: Sequence[int]) -> Figure:
    from ris_pipeline.report.figures import draw_table

    scores = read_scores(options, found)
    if not scores:
        raise RisError(f"nothing has been scored yet; run: {command_line(options, 'ris score')}")
    return draw_table(scores, [name for name in HEADLINE if any(name in score.metrics for score in scores)])
