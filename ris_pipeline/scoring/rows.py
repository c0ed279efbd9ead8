"""What is scored: the rows of the score table, what each is read from, and how it is called and drawn.

The command line, the score table, the report, the figures and the paper's tables all ask here. The rows of the chain
are ROWS; a compared method's is made of its entry in `methods.METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import ROUNDS, TRAIN_SPLIT, flags_of_round
from ris_pipeline.methods import Method, list_compared

RED, AMBER = (255, 64, 64), (255, 176, 0)

# maps: one per sentence, stored as responses; choice: the map that PRMS selects of a ref's; labels: PNGs, one per ref;
# network: Step-2, run on the images.
Kind = Literal["chance", "maps", "choice", "labels", "network"]
# What is learnt from beside images and sentences, and beside what the CLIP has learnt.
Tier = Literal["text", "class-agnostic masks", "boxes or masks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the score table."""

    name: str  # in the table, and in the flags of its artifacts of scores
    title: str  # in the report
    label: str  # the same in a few letters, for an axis or a legend
    stage: str  # what `ris score --stage` calls it
    kind: Kind
    source: str = ""  # the stage whose artifact is read
    flags: Mapping[str, str | bool] = field(default_factory=dict)  # of that artifact, beside the split
    command: str = ""  # makes that artifact
    optional: bool = False  # nothing is said where it has not been made
    paper: str = ""  # its name in the paper's tables
    tile: str = ""  # title of its column in the gallery; a row without one is a yardstick and not broken down
    aside: bool = False  # its column in the gallery is shown on demand
    colour: tuple[int, int, int] = RED  # of its masks, RGB
    improves: tuple[str, ...] = ()  # rows it is compared with, the first that has been scored
    training: str = ""  # the artifact of what is trained for it
    learner: str = ""  # what is trained there
    test_time: tuple[str, ...] = ()  # of TEST_TIME: what is done to a network's answers
    tier: Tier = "text"  # its supervision

    def applies_to(self, split: str, *, chosen: bool) -> bool:
        """Return whether the row is scored on a split; `chosen`: the user named it.

        Step-2 is scored on the split it was trained on only where that is chosen.
        """
        if self.kind == "labels":
            return split == TRAIN_SPLIT
        return self.kind != "network" or split != TRAIN_SPLIT or chosen

    def find_source(self, find: Callable[..., Artifact | None], split: str) -> Artifact | None:
        """Return the artifact that the row is read from, by find(stage, **flags); None where there is none."""
        flags = {**self.flags, "split": split} if self.source == "responses" else self.flags
        artifact = find(self.source, **flags) if self.source else None
        if artifact and self.kind == "choice" and not artifact.manifest["configuration"]["prms"]:
            return None
        return artifact


_DUMP = "ris dump-responses --split {split}"
ROWS = {
    row.name: row
    for row in (
        Row(name="chance", title="Chance", label="Chance", stage="chance", kind="chance"),
        Row(
            name="step1", title="Step-1", label="Step-1", stage="step1", kind="maps", source="responses",
            command=_DUMP, paper="Step-1", tile="Step-1 map", training="step1", learner="Step-1",
        ),
        Row(
            name="prms", title="PRMS", label="PRMS", stage="prms", kind="choice", source="responses",
            command=f"{_DUMP} --set prms=true", paper="PRMS", tile="PRMS choice",
        ),
        # Without refinement the labels are the maps that PRMS selected.
        Row(
            name="pseudo-plain", title="Pseudo-labels, plain", label="Labels, plain", stage="pseudolabels",
            kind="labels", source="pseudolabels", flags={"refine": False}, command="ris make-pseudolabels --no-refine",
            paper="PRMS",
        ),
        Row(
            name="pseudo-refined", title="Pseudo-labels, refined", label="Labels, refined", stage="pseudolabels",
            kind="labels", source="pseudolabels", flags={"refine": True}, command="ris make-pseudolabels --refine",
            paper="PRMS + R", tile="Pseudo-label", colour=AMBER, improves=("pseudo-plain", "prms"),
            training="pseudolabels/refine", learner="IRNet",
        ),
        Row(
            name="pseudo-proposals", title="Pseudo-labels, chosen among class-agnostic masks",
            label="Labels, proposals", stage="pseudolabels", kind="labels", source="pseudolabels",
            flags={"proposals": True}, optional=True, tier="class-agnostic masks",
            command="ris make-pseudolabels --proposals FOLDER",
        ),
        Row(
            name="step2", title="Step-2", label="Step-2", stage="step2", kind="network", source="step2",
            flags={"labels": "pseudo"}, command="ris train-step2", paper="Step-2", tile="Step-2 mask",
            improves=("step1",), training="step2/pseudo", learner="Step-2",
        ),
        Row(
            name="step2-oracle", title="Step-2 on true masks: the upper bound", label="Oracle", stage="step2",
            kind="network", source="step2", flags={"labels": "true"}, command="ris train-step2 --oracle",
            optional=True, tier="boxes or masks",
        ),
        Row(
            name="step2-proposals", title="Step-2 on labels chosen among class-agnostic masks",
            label="Step-2, proposals", stage="step2", kind="network", source="step2", flags={"labels": "proposals"},
            command="ris train-step2 --proposals", optional=True, tier="class-agnostic masks", improves=("step2",),
        ),
    )
}  # fmt: skip
# What may be done at test time, in this order, and is not by default: {option: in words}.
TEST_TIME = {
    "mirror": "mean with the mirror image",
    "sizes": "mean over three sizes",
    "rivals": "sentences of the split train compete for its pixels",
    "compete": "all sentences of the image at once, competing for its pixels",
    "crf": "mask cleaned by the dense CRF",
}
# The oracle's figures that a card keeps, for runs in which it was not trained.
STORED_ORACLE = Row(
    name="oracle, stored", title="Step-2 on true masks, as the card has it", label="Oracle, stored", stage="step2",
    kind="network", tier="boxes or masks",
)  # fmt: skip


def list_rows() -> list[Row]:
    """Return all rows in the order of the table: the chain's, its later rounds', those of compared methods."""
    rounds = [row for number in ROUNDS for row in _rows_of_round(number)]
    return [*ROWS.values(), *rounds, *(row for method in list_compared() for row in _rows_of_method(method))]


def find_row(name: str) -> Row:
    """Return the row of that name; for a method that is not here, one that is called by its name."""
    base, *options = name.split("+")
    known = {row.name: row for row in (*list_rows(), STORED_ORACLE)}
    row = known.get(base) or _rows_of_method(Method(base, base, "", object, 0))[0]
    return mark_test_time(row, options) if options else row


def mark_test_time(row: Row, options: Sequence[str]) -> Row:
    """Return the row of a network that is asked with some of TEST_TIME: "step2+mirror", without the paper's figures."""
    title = f"{row.title} ({', '.join(TEST_TIME[option] for option in options)})"
    name, label = (f"{text}+{'+'.join(options)}" for text in (row.name, row.label))
    return replace(
        row, name=name, title=title, label=label, paper="", tile="", training="", improves=(row.name,),
        test_time=tuple(options),
    )  # fmt: skip


def is_aside(name: str) -> bool:
    """Return whether a column of the gallery is shown on demand."""
    return any(row.aside for row in list_rows() if row.name == name)


def _rows_of_round(number: int) -> tuple[Row, ...]:
    """Return the rows of a later round: the labels that Step-2 has made, and the Step-2 that learns from them."""
    flags = flags_of_round(number)
    return (
        Row(
            name=f"pseudo-round{number}", title=f"Pseudo-labels, round {number}", label=f"Labels {number}",
            stage="pseudolabels", kind="labels", source="pseudolabels", flags=flags,
            command=f"ris make-pseudolabels --round {number}", optional=True, colour=AMBER,
        ),
        Row(
            name=f"step2-round{number}", title=f"Step-2, round {number}", label=f"Step-2, {number}", stage="step2",
            kind="network", source="step2", flags={"labels": "pseudo", **flags},
            command=f"ris train-step2 --round {number}", optional=True, tile=f"Step-2, round {number}", aside=True,
            improves=("step2",),
        ),
    )  # fmt: skip


def _rows_of_method(method: Method) -> tuple[Row, ...]:
    """Return the rows of a method's maps, and of Step-2 trained on them, which the paper does not have."""
    name, title, flags = method.name, method.title, method.flags
    step2 = f"{title} → Step-2"
    return (
        Row(
            name=name, title=title, label=title, stage=name, kind="maps", source="responses", flags=flags,
            command=f"{_DUMP} --method {name}", optional=True, paper=method.paper,
            tile=title, aside=name != "wwbl",  # the one in the paper's Fig. 2
        ),
        Row(
            name=f"{name}-step2", title=step2, label=step2, stage=name, kind="network", source="step2",
            flags={"labels": "pseudo", **flags}, command=f"ris train-step2 --method {name}", optional=True,
            tile=step2, aside=True, improves=(name,),
        ),
    )  # fmt: skip


def find_improvement(known: Collection[str]) -> tuple[str, str] | None:
    """Return the names of the first row of ROWS that is known with one it improves: (improved, improving)."""
    for row in ROWS.values():
        before = next((name for name in row.improves if name in known), None)
        if before and row.name in known:
            return before, row.name
    return None


def list_stages() -> tuple[str, ...]:
    """Return what `ris score --stage` takes."""
    return tuple(dict.fromkeys(row.stage for row in list_rows()))
