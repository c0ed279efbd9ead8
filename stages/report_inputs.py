"""What `ris report` and `ris figure` read: the latest artifacts of a data set, and the networks of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ris_pipeline.artifacts.find import find_latest, list_latest
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import METRICS, OUTCOMES, store_path
from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.errors import RisError
from ris_pipeline.scoring.rows import LABELS_SPLIT, ROWS
from stages.common import command_line, device_of, splits_of
from stages.options import StageOptions, card_of

if TYPE_CHECKING:
    from ris_pipeline.report.charts import Curves
    from ris_pipeline.report.panels import Sources
    from ris_pipeline.scoring.metrics import Outcome
    from ris_pipeline.scoring.scores import Score


@dataclass(frozen=True, slots=True)
class Found:
    """The latest artifacts of the chosen splits; what has not been made is missing or None."""

    splits: tuple[str, ...]  # with responses or scores
    responses: Mapping[str, Artifact]  # by split
    methods: Mapping[str, Mapping[str, Artifact]]  # {compared method: {split: its responses}}
    scores: Mapping[tuple[str, str], Artifact]  # by row and split, in the order of the score table
    step1: Artifact | None
    labels: Artifact | None  # refined
    step2: Artifact | None
    oracle: Artifact | None

    @property
    def artifacts(self) -> list[Artifact]:
        """All of them."""
        single = [one for one in (self.step1, self.labels, self.step2, self.oracle) if one is not None]
        methods = [one for by_split in self.methods.values() for one in by_split.values()]
        return [*single, *self.responses.values(), *methods, *self.scores.values()]


def find_artifacts(options: StageOptions, chosen: Sequence[str] | None) -> Found:
    """The latest artifacts of the `chosen` splits, or of all; RisError with the command to run if there is none."""
    name = card_of(options).name
    splits = splits_of(options, chosen)
    responses = {
        split: found for split in splits if (found := find_latest(options.runs, name, "responses", split=split))
    }
    scores = _find_scores(options, splits)
    with_something = tuple(split for split in splits if split in responses or any(split == s for _, s in scores))
    if not with_something:
        raise RisError(
            f"{options.runs / name}: no responses and no scores of {', '.join(splits)} yet; "
            f"run: {command_line(options, 'ris dump-responses')}"
        )
    return Found(
        splits=with_something,
        responses=responses,
        methods=_find_methods(options, splits),
        scores=scores,
        step1=find_latest(options.runs, name, "step1"),
        labels=find_latest(options.runs, name, "pseudolabels", refine=True),
        step2=find_latest(options.runs, name, "step2", labels="pseudo"),
        oracle=find_latest(options.runs, name, "step2", labels="true"),
    )


def _find_methods(options: StageOptions, splits: Sequence[str]) -> dict[str, dict[str, Artifact]]:
    """The responses of compared methods: those whose flags name a method beside the split."""
    found: dict[str, dict[str, Artifact]] = {}
    for artifact in list_latest(options.runs, card_of(options).name, "responses").values():
        flags = artifact.manifest["flags"]
        if "method" in flags and flags["split"] in splits:
            found.setdefault(flags["method"], {})[flags["split"]] = artifact
    return found


def _find_scores(options: StageOptions, splits: Sequence[str]) -> dict[tuple[str, str], Artifact]:
    order = list(ROWS)
    found = {
        (artifact.manifest["flags"]["scored"], artifact.manifest["flags"]["split"]): artifact
        for artifact in list_latest(options.runs, card_of(options).name, "scores").values()
    }

    def place(key: tuple[str, str]) -> tuple[int, int, str]:
        row, split = key
        return splits.index(split), order.index(row) if row in order else len(order), row

    return {key: found[key] for key in sorted((key for key in found if key[1] in splits), key=place)}


def read_scores(options: StageOptions, found: Found) -> list[Score]:
    """The score table; behind Step-2's row the oracle's figures that the card keeps, where it was not made here."""
    from ris_pipeline.scoring.scores import add_stored_oracle, read_score

    return add_stored_oracle([read_score(artifact) for artifact in found.scores.values()], card_of(options).oracle)


def read_outcomes(found: Found, row: str, split: str) -> list[Outcome]:
    """The outcomes of a row of the score table, none where it has not been scored."""
    from ris_pipeline.scoring.outcomes import load_outcomes

    artifact = found.scores.get((row, split))
    return load_outcomes(artifact.path / OUTCOMES) if artifact else []


def read_curves(found: Found) -> dict[str, Curves]:
    """The losses of each training that has left some, by what is trained."""
    from ris_pipeline.report.curves import load_curves

    titles = {row.training: row.learner for row in ROWS.values() if row.training}
    trained = [artifact for artifact in (found.step1, found.labels, found.step2) if artifact is not None]
    return {
        titles[artifact.name]: load_curves(artifact.path / METRICS)
        for artifact in trained
        if (artifact.path / METRICS).is_file()
    }


def open_sources(options: StageOptions, found: Found) -> Sources:
    """The responses, labels and networks that panels are read from, networks on the device of `options`."""
    from safetensors.torch import load_file

    from ris_pipeline.artifacts.layout import IRNET_WEIGHTS
    from ris_pipeline.maps.store import ResponseStore
    from ris_pipeline.methods.tris import load_network
    from ris_pipeline.networks.load import build_irnet, config_from_manifest
    from ris_pipeline.report.panels import Sources

    device = device_of(options)
    irnet = step2 = None
    if found.labels is not None:
        config = config_from_manifest(PseudolabelConfig, found.labels.manifest)
        # Learnt here, its file holds the backbone's weights too: the original ones need not be fetched again.
        irnet = build_irnet(replace(config, irn_weights=None))
        if config.irnet is None:
            irnet.load_state_dict(load_file(found.labels.path / IRNET_WEIGHTS))
        irnet.to(device).eval()
    if found.step2 is not None:
        step2 = load_network(found.step2, device)
    return Sources(
        responses={split: ResponseStore.open(store_path(one.path, split)) for split, one in found.responses.items()},
        methods={
            method: {split: ResponseStore.open(store_path(one.path, split)) for split, one in by_split.items()}
            for method, by_split in found.methods.items()
        },
        labels=None if found.labels is None else found.labels.path,
        labels_split=LABELS_SPLIT,
        irnet=irnet,
        step2=step2,
    )
