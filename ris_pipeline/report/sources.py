"""What the report and the figures are made of: the latest artifacts of a data set, and what was scored of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ris_pipeline.artifacts.find import find_behind, find_latest, find_named, list_latest, load_artifacts
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import OUTCOMES, TRAIN_SPLIT, TRAINING_LOG
from ris_pipeline.errors import RisError
from ris_pipeline.report.curves import Curves, load_curves
from ris_pipeline.scoring.metrics import Estimate, Outcome
from ris_pipeline.scoring.outcomes import load_outcomes
from ris_pipeline.scoring.rows import ROWS, Row, find_row, list_rows
from ris_pipeline.scoring.scores import Score, add_stored_oracle, read_score


@dataclass(frozen=True, slots=True)
class LabelRun:
    """A run of pseudo-labels, and its scores where there is truth."""

    labels: Artifact
    scores: Artifact | None

    def count(self, name: str) -> int | None:
        """Return a count of `refine.quality.count_labels`, None where the run has none."""
        value: int | None = self.labels.manifest["counts"].get(name)
        return value

    @property
    def miou(self) -> Estimate | None:
        """The labels' mIoU against the true masks, in percent."""
        return read_score(self.scores).metrics.get("miou") if self.scores else None


@dataclass(frozen=True, slots=True)
class Sources:
    """The latest artifacts of a data set; what has not been made is missing."""

    splits: tuple[str, ...]  # with responses or scores
    rows: tuple[Row, ...]  # with a column in the gallery: the chain's, and those of methods with responses
    shown: Mapping[tuple[str, str], Artifact]  # {(row, split): what the row's pictures are read from}
    scored: Mapping[tuple[str, str], Artifact]  # {(row, split): its scores}, in the order of the score table
    trained: Mapping[str, Artifact]  # {what was trained: where}
    labels: Sequence[LabelRun]  # the latest pseudo-labels, each run behind the one that it is made from

    @property
    def artifacts(self) -> list[Artifact]:
        """All of them, each once."""
        labels = [artifact for run in self.labels for artifact in (run.labels, run.scores) if artifact]
        found = (*self.shown.values(), *self.scored.values(), *self.trained.values(), *labels)
        return list({artifact.path: artifact for artifact in found}.values())

    @property
    def splits_with_maps(self) -> list[str]:
        """The splits that have responses."""
        return [
            split
            for split in self.splits
            if any(row.kind == "maps" and (row.name, split) in self.shown for row in self.rows)
        ]

    @property
    def n_bootstrap(self) -> int:
        """The number of resamplings behind the scores' intervals, the largest where they differ."""
        return max((artifact.manifest["configuration"]["bootstrap"] for artifact in self.scored.values()), default=1)

    def read_scores(self, oracle: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Score]:
        """Return the score table; `oracle`: the figures that the card keeps, for runs without one."""
        return add_stored_oracle([read_score(artifact) for artifact in self.scored.values()], oracle)

    def read_outcomes(self, split: str) -> dict[str, list[Outcome]]:
        """Return {row: its outcomes} of the rows that were scored on a split."""
        return {
            row: load_outcomes(artifact.path / OUTCOMES) for (row, own), artifact in self.scored.items() if own == split
        }

    def read_curves(self) -> dict[str, Curves]:
        """Return {what was trained: its losses} of the trainings that have left some."""
        curves = {
            learner: load_curves(artifact.path / TRAINING_LOG)
            for learner, artifact in self.trained.items()
            if (artifact.path / TRAINING_LOG).is_file()
        }
        return {learner: own for learner, own in curves.items() if own}


def find_sources(runs: Path, dataset: str, splits: Sequence[str], command_line: Callable[[str], str]) -> Sources:
    """Return the latest artifacts of a data set that are of these splits.

    `command_line` returns a command as it has to be typed for the data set. Raises RisError where there are none.
    """
    flags = [artifact.manifest["flags"] for artifact in list_latest(runs, dataset, "responses").values()]
    methods = [find_row(str(own["method"])) for own in flags if "method" in own and own["split"] in splits]
    rows = [row for row in ROWS.values() if row.tile] + list({row.name: row for row in methods}.values())
    find = partial(find_latest, runs, dataset)
    shown = {
        (row.name, split): source
        for row in rows
        for split in splits
        if row.applies_to(split, chosen=True) and (source := row.find_source(find, split))
    }
    scored = _find_scores(runs, dataset, splits)
    trained = {row.learner: find_named(runs, dataset, row.training) for row in ROWS.values() if row.training}
    with_maps = {split for row, split in shown if find_row(row).kind == "maps"}
    with_something = tuple(split for split in splits if split in with_maps or any(split == own for _, own in scored))
    if not with_something:
        raise RisError(
            f"{runs / dataset}: no responses and no scores of {', '.join(splits)} yet; "
            f"run: {command_line('ris dump-responses')}"
        )
    return Sources(
        splits=with_something,
        rows=tuple(rows),
        shown=shown,
        scored=scored,
        trained={learner: artifact for learner, artifact in trained.items() if artifact},
        labels=_find_labels(runs, dataset) if TRAIN_SPLIT in splits else (),
    )


def _find_labels(runs: Path, dataset: str) -> list[LabelRun]:
    """Return the latest pseudo-labels of each kind and those behind them, and the last scores of each."""
    found: dict[str, Artifact] = {}

    def add(artifact: Artifact) -> None:
        if artifact.digest not in found:
            if before := find_behind(runs / dataset, artifact.manifest["inputs"], "pseudolabels"):
                add(before)
            found[artifact.digest] = artifact

    for artifact in list_latest(runs, dataset, "pseudolabels").values():
        add(artifact)
    scores = sorted(load_artifacts(runs, dataset, "scores"), key=lambda score: str(score.manifest["finished"]))
    of_labels = {score.manifest["inputs"].get(labels.name): score for score in scores for labels in found.values()}
    return [LabelRun(labels, of_labels.get(digest)) for digest, labels in found.items()]


def _find_scores(runs: Path, dataset: str, splits: Sequence[str]) -> dict[tuple[str, str], Artifact]:
    found = {}
    for artifact in list_latest(runs, dataset, "scores").values():
        row, split = artifact.manifest["flags"]["scored"], artifact.manifest["flags"]["split"]
        if split in splits:
            found[row, split] = artifact
    order = [row.name for row in list_rows()]

    def place(key: tuple[str, str]) -> tuple[int, int, str]:
        row, split = key
        return splits.index(split), order.index(row) if row in order else len(order), row

    return {key: found[key] for key in sorted(found, key=place)}
