"""The pictures of one sentence, stage by stage, as arrays: the columns of the paper's Fig. 2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ris_pipeline.artifacts.layout import label_path
from ris_pipeline.datasets.io.images import load_image, normalise
from ris_pipeline.datasets.records import Dataset
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import compute_map, compute_mask, show_map
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.masks import FOREGROUND, load_label
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.report.samples import Sample
from ris_pipeline.scoring.metrics import BoolMask, Outcome, point_of, score_expression
from ris_pipeline.scoring.rows import LABELS_SPLIT, RED, ROWS, find_row

Kind = Literal["map", "boundary", "mask", "truth"]
Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `key` names what it shows as the score table does, where that scores it."""

    key: str
    title: str
    kind: Kind
    colour: tuple[int, int, int] = RED  # of a mask, RGB


BOUNDARY = Column("boundary", "Boundary", "boundary")  # the maps' way to the pseudo-labels
TRUTH = Column("truth", "Ground truth", "truth", (26, 214, 132))


def list_columns(methods: Iterable[str] = ()) -> tuple[Column, ...]:
    """Return the columns in the order of the paper's figure; compared methods stand before the ground truth."""
    columns = []
    for row in [*(row for row in ROWS.values() if not row.is_compared), *map(find_row, methods)]:
        if row.tile:
            columns += [BOUNDARY] if row.kind == "labels" else []
            kind: Kind = "map" if row.kind in ("maps", "choice") else "mask"
            columns.append(Column(row.name, row.tile, kind, row.colour))
    return (*columns, TRUTH)


@dataclass(frozen=True, slots=True)
class Panel:
    """What one column shows of a sentence; `values` None: nothing, and `note` says why.

    values: a map or boundary float32 (H, W) in [0, 1]; a mask uint8 (H, W), 0, 1 and 255 for "ignore".
    point: (y, x) of the map's largest value. outcome: how it scores; None where it is not scored.
    """

    values: Map | Pixels | None
    note: str = ""
    point: tuple[int, int] | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """The panels of a sample by column key, and its image uint8 (H, W, 3) RGB."""

    sample: Sample
    image: Pixels
    panels: Mapping[str, Panel]


@dataclass(frozen=True)
class Sources:
    """What the panels are read from; what is missing gives empty panels.

    responses: by split. methods: {method: {split: responses}} of compared methods. labels, irnet: of the split
    `labels_split`. step2: the trained network.
    """

    responses: Mapping[str, ResponseStore] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, ResponseStore]] = field(default_factory=dict)
    labels: Path | None = None
    labels_split: str = LABELS_SPLIT
    irnet: IRNet | None = None
    step2: Responder | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return the columns of these sources."""
        return list_columns(self.methods)


def read_rows(datasets: Mapping[str, Dataset], samples: Sequence[Sample], sources: Sources) -> Iterator[Row]:
    """Yield a row per sample, image by image: one image is encoded once, and one row's maps are in memory."""
    for (split, image_id), of_image in _group(samples).items():
        dataset = datasets[split]
        image = load_image(dataset.images[image_id])
        boundary = _read_boundary(sources, split, image)
        step2 = _segment(sources, image, [sample.expression.sentence for sample in of_image])
        for sample, response in zip(of_image, step2, strict=True):
            mask = dataset.load_mask(sample.ref) if sample.ref.segmentation is not None else None
            reader = _Reader(sample, (image.shape[0], image.shape[1]), mask)
            panels = {
                "step1": reader.read_map(sources.responses.get(split)),
                "prms": reader.read_choice(sources.responses.get(split)),
                "boundary": boundary,
                "pseudo-refined": reader.read_label(sources),
                "step2": reader.read_segmentation(response),
                **{name: reader.read_map(stores.get(split)) for name, stores in sources.methods.items()},
                "truth": reader.read_truth(),
            }
            yield Row(sample, image, panels)


def _group(samples: Sequence[Sample]) -> dict[tuple[str, int], list[Sample]]:
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.split, sample.ref.image_id), []).append(sample)
    return groups


def _read_boundary(sources: Sources, split: str, image: Pixels) -> Panel:
    """The boundary of an image that was refined, at stride 4."""
    if split != sources.labels_split:
        return Panel(None, f"refinement is of {sources.labels_split} only")
    if sources.irnet is None:
        return Panel(None, "no refined pseudo-labels yet")
    device = next(sources.irnet.parameters()).device
    edge, _ = sources.irnet.edge_displacement(normalise(image)[None].to(device))
    return Panel(edge[0, 0].float().cpu().numpy())


@torch.inference_mode()
def _segment(sources: Sources, image: Pixels, sentences: list[str]) -> Sequence[tuple[Map, BoolMask] | None]:
    """Step-2's map float32 and mask bool (H, W) of each sentence, None where there is no Step-2."""
    step2 = sources.step2
    if step2 is None:
        return [None] * len(sentences)
    pixels = step2.preprocess(image)[None].to(step2.device, memory_format=torch.channels_last)
    (encoded,) = step2.encode_images(pixels)
    grids = step2.respond(encoded, step2.encode_texts(sentences))
    maps = compute_map(grids, step2.rule, step2.input_size, (image.shape[0], image.shape[1]))
    masks = compute_mask(maps, step2.rule)
    return list(zip(maps.cpu().numpy(), masks.cpu().numpy(), strict=True))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the panels of one sample, whose ground-truth mask is bool (H, W) or None."""

    sample: Sample
    hw: tuple[int, int]
    truth: BoolMask | None

    def read_map(self, store: ResponseStore | None) -> Panel:
        """The map of the sample's own sentence."""
        if store is None:
            return Panel(None, "no responses of this split yet")
        rows = store.rows_of_ref(self.sample.ref.ref_id)
        sent_ids = store.sent_id[rows].tolist()
        if self.sample.expression.sent_id not in sent_ids:
            raise RisError(
                f"{store.path}: holds no sentence {self.sample.expression.sent_id} of ref "
                f"{self.sample.ref.ref_id}; run `ris dump-responses`"
            )
        return self._map_of_row(store, rows[sent_ids.index(self.sample.expression.sent_id)])

    def read_choice(self, store: ResponseStore | None) -> Panel:
        """The map that PRMS chose of all the ref's sentences; the note is its sentence."""
        if store is None:
            return Panel(None, "no responses of this split yet")
        if not store.has_selection:
            return Panel(None, "dumped without PRMS")
        ref = self.sample.ref
        k = store.selected(ref.ref_id)
        panel = self._map_of_row(store, store.rows_of_ref(ref.ref_id)[k])
        chosen = ref.expressions[k]
        note = "this sentence" if chosen == self.sample.expression else f"“{chosen.sentence}”"
        return Panel(panel.values, note, panel.point, panel.outcome)

    def _map_of_row(self, store: ResponseStore, row: int) -> Panel:
        maps = compute_map(torch.from_numpy(store.read_grids([row])), store.rule, store.input_size, self.hw)
        response, prediction = maps[0].numpy(), compute_mask(maps, store.rule)[0].numpy()
        shown = show_map(maps, store.rule)[0].numpy()
        return Panel(shown, "", point_of(response), self._score(response, prediction))

    def read_label(self, sources: Sources) -> Panel:
        """The refined pseudo-label."""
        if self.sample.split != sources.labels_split:
            return Panel(None, f"refinement is of {sources.labels_split} only")
        if sources.labels is None:
            return Panel(None, "no refined pseudo-labels yet")
        label = load_label(label_path(sources.labels, self.sample.ref.ref_id))
        mask = label == FOREGROUND
        outcome = self._score(mask.astype(np.float32), mask)
        # A mask has no largest value to point with.
        outcome = replace(outcome, point_it=None, point_m=None) if outcome else None
        return Panel(label, "" if mask.any() else "empty", None, outcome)

    def read_segmentation(self, found: tuple[Map, BoolMask] | None) -> Panel:
        """Step-2's mask."""
        if found is None:
            return Panel(None, "no Step-2 yet")
        response, mask = found
        note = "" if mask.any() else "nothing found"
        return Panel(mask.astype(np.uint8), note, point_of(response), self._score(response, mask))

    def read_truth(self) -> Panel:
        """The ground-truth mask; without one, an empty mask where there is a box to show."""
        if self.truth is not None:
            return Panel(self.truth.astype(np.uint8))
        if self.sample.ref.box_xyxy is None:
            return Panel(None, "the data set has none")
        return Panel(np.zeros(self.hw, np.uint8), "box only")

    def _score(self, response: Map, prediction: BoolMask) -> Outcome | None:
        ref = self.sample.ref
        if self.truth is None and ref.box_xyxy is None:
            return None
        return score_expression(
            ref_id=ref.ref_id, sent_id=self.sample.expression.sent_id,
            response=response, prediction=prediction, box_xyxy=ref.box_xyxy,
            edges_xyxy=ref.edges_xyxy, mask=self.truth,
        )  # fmt: skip
