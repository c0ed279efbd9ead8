"""`ris runs`: all variants of a data set's artifacts; or of two: what differs, and how far apart they score."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ris_pipeline.artifacts.find import compare_identities, find_variant, list_latest, list_variants, pair_scores
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import METRICS
from ris_pipeline.config import ScoreConfig
from ris_pipeline.errors import RisError, suggest_path
from ris_pipeline.process.units import format_duration, format_size
from ris_pipeline.scoring.compare import Difference, compare_scores
from ris_pipeline.scoring.metrics import HEADLINE, select_metrics
from stages.common import resolve_config
from stages.options import StageOptions, align, card_of, emit, say


def run(options: StageOptions, which: Sequence[str], metric: str, tensorboard: Path | None) -> None:
    """Lists the variants, or compares the two of `which`; `tensorboard`: writes their curves there instead."""
    dataset = card_of(options).name
    variants = list_variants(options.runs, dataset)
    if not variants:
        raise RisError(f"{options.runs / dataset}: no finished runs yet{suggest_path(options.runs / dataset)}")
    if len(which) not in (0, 2):
        raise RisError("give two runs to compare, or none to list them all")
    chosen = [find_variant(options.runs, dataset, word, variants) for word in which]
    if tensorboard is not None:
        _write_curves(options, chosen or variants, tensorboard)
    elif chosen:
        _compare(options, chosen[0], chosen[1], variants, metric)
    else:
        _list(options, variants)


def _list(options: StageOptions, variants: Sequence[Artifact]) -> None:
    dataset = card_of(options).name
    stages = dict.fromkeys(str(one.manifest["stage"]) for one in variants)
    latest = {one.name: one for stage in stages for one in list_latest(options.runs, dataset, stage).values()}
    rows: list[dict[str, Any]] = []
    for one in variants:
        newest = latest.get(one.name)
        is_latest = newest is not None and newest.digest == one.digest
        apart = compare_identities(newest, one, variants) if newest and not is_latest else []
        manifest = one.manifest
        rows.append(
            {
                "run": one.name,
                "digest": one.digest,
                "latest": is_latest,
                "finished": manifest["finished"],
                "seconds": manifest["timings"]["total"],
                "bytes": manifest["files"]["bytes"],
                "differs": apart,
            }
        )
    cells = [
        [row["run"], row["digest"], row["finished"][:16], format_duration(row["seconds"]), format_size(row["bytes"]),
         "latest" if row["latest"] else _shorten(row["differs"])]
        for row in rows
    ]  # fmt: skip
    emit(options, align([["run", "digest", "finished", "time", "size", "against the latest"], *cells]), rows)


def _shorten(lines: Sequence[str]) -> str:
    return "; ".join([*lines[:2], *([f"and {len(lines) - 2} more"] if len(lines) > 2 else [])])


def _compare(options: StageOptions, a: Artifact, b: Artifact, variants: Sequence[Artifact], metric: str) -> None:
    apart = compare_identities(a, b, variants)
    metrics = HEADLINE if metric == "all" else select_metrics(metric)
    n_bootstrap = resolve_config(options, ScoreConfig, "scores").bootstrap
    differences = [
        difference
        for pair in pair_scores(a, b, variants)
        for difference in compare_scores(*pair, metrics, n_bootstrap, options.seed)
    ]
    lines = [f"{letter}: {one.name} {one.digest}, {one.manifest['finished']}" for letter, one in (("a", a), ("b", b))]
    lines += ["", "differs (a → b):" if apart else "nothing differs", *(f"  {line}" for line in apart)]
    if differences:
        header = ["scored", "split", "refs", "metric", "a", "b", "b − a, points [95 % interval]"]
        lines += ["", align([header, *map(_cells, differences)])]
    else:
        say(options, "no score of the one has a counterpart of the other; `ris score` scores what is the latest")
    shown = {"a": f"{a.name} {a.digest}", "b": f"{b.name} {b.digest}", "differs": apart}
    emit(options, "\n".join(lines), {**shown, "scores": [asdict(difference) for difference in differences]})


def _cells(difference: Difference) -> list[str]:
    """The fields as text."""
    interval = f"{difference.difference:+.1f} [{difference.ci_low:.1f}, {difference.ci_high:.1f}]"
    values = [f"{difference.a:.1f}", f"{difference.b:.1f}", interval]
    return [difference.scored, difference.split, f"{difference.n_refs:,}", difference.metric, *values]


def _write_curves(options: StageOptions, artifacts: Sequence[Artifact], folder: Path) -> None:
    """Writes metrics.jsonl of each artifact that has one as event files of TensorBoard."""
    import json

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RisError("TensorBoard is not installed; pip install -c constraints.txt -e '.[tensorboard]'") from error
    for one in artifacts:
        log = one.path / METRICS
        if not log.is_file():
            continue
        target = folder / one.name / one.digest
        with SummaryWriter(str(target)) as writer, log.open(encoding="utf-8") as lines:
            for values in map(json.loads, lines):
                step = values.pop("step")
                for name, value in values.items():
                    writer.add_scalar(name, value, step)
        emit(options, str(target), {"path": str(target)})
