"""The pictures of one sentence, stage by stage, as arrays: the columns of the paper's Fig. 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ris_pipeline.arrays import FOREGROUND, BoolMask, Pixels
from ris_pipeline.artifacts.layout import TRAIN_SPLIT, label_path, store_path
from ris_pipeline.datasets.io.images import load_image, normalise, to_pixels
from ris_pipeline.datasets.io.labels import load_label
from ris_pipeline.datasets.records import Dataset
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import compute_map, compute_mask, show_map
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.methods.load import load_network
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.networks.load import load_irnet
from ris_pipeline.report.samples import Sample
from ris_pipeline.report.sources import Sources
from ris_pipeline.scoring.evaluate import load_truth, score_sentence
from ris_pipeline.scoring.metrics import Outcome, point_of
from ris_pipeline.scoring.rows import Row

Kind = Literal["map", "boundary", "mask", "truth"]
Map = NDArray[np.float32]

GREEN = (26, 214, 132)


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a sentence; `values` None: there is none, and `note` says why.

    key: the row of the score table, or "boundary" or "truth". values: a map or boundary float32 (H, W) in [0, 1]; a
    mask uint8 (H, W), 0, 1 and 255 for "ignore". point: (y, x) of the map's largest value. outcome: how it scores;
    None where it is not scored. colour: of a mask, RGB.
    """

    key: str
    title: str
    kind: Kind
    values: Map | Pixels | None = None
    note: str = ""
    point: tuple[int, int] | None = None
    outcome: Outcome | None = None
    colour: tuple[int, int, int] = GREEN


@dataclass(frozen=True, slots=True)
class Strip:
    """The pictures of a sample: its image uint8 (H, W, 3) RGB, and its panels in the order of the paper's figure."""

    sample: Sample
    image: Pixels
    panels: tuple[Panel, ...]


def read_strips(
    sources: Sources, datasets: Mapping[str, Dataset], samples: Sequence[Sample], device: torch.device
) -> Iterator[Strip]:
    """Yield a strip per sample, image by image: an image is encoded once, and the maps of one sample are in memory."""
    if not samples:
        return
    opened = _Opened(sources, device)
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.split, sample.ref.image_id), []).append(sample)
    for (split, image_id), of_image in groups.items():
        dataset = datasets[split]
        image = load_image(dataset.images[image_id])
        hw = image.shape[0], image.shape[1]
        boundary = _read_boundary(opened, split, image)
        sentences = [sample.expression.sentence for sample in of_image]
        segmented = {row: _segment(network, image, sentences) for row, network in opened.networks.items()}
        for k, sample in enumerate(of_image):
            reader = _Reader(sample, hw, *load_truth(dataset, sample.ref))
            panels = []
            for row in sources.rows:
                if row.kind == "labels":
                    panels.append(boundary)
                source, store = sources.shown.get((row.name, split)), opened.stores.get((row.name, split))
                if row.kind == "network":
                    panel = reader.read_segmentation(row, segmented[row.name][k] if row.name in segmented else None)
                elif row.kind == "labels":
                    panel = reader.read_label(row, source.path if source else None)
                elif row.kind == "choice":
                    panel = reader.read_choice(row, store, has_maps=("step1", split) in opened.stores)
                else:
                    panel = reader.read_map(row, store)
                panels.append(panel)
            yield Strip(sample, image, (*panels, reader.read_truth()))


class _Opened:
    """The stores and networks of the sources, each opened once."""

    def __init__(self, sources: Sources, device: torch.device) -> None:
        self.stores: dict[tuple[str, str], ResponseStore] = {}
        self.networks: dict[str, Responder] = {}
        self.irnet: IRNet | None = None
        kinds = {row.name: row.kind for row in sources.rows}
        for (name, split), artifact in sources.shown.items():
            kind = kinds[name]
            if kind in ("maps", "choice"):
                self.stores[name, split] = ResponseStore.open(store_path(artifact.path, split))
            elif kind == "network" and name not in self.networks:
                self.networks[name] = load_network(artifact, device)
            elif kind == "labels":
                self.irnet = load_irnet(artifact, device)


def _read_boundary(opened: _Opened, split: str, image: Pixels) -> Panel:
    """Return the boundary of an image that was refined, at stride 4."""
    empty = Panel("boundary", "Boundary", "boundary", note=_why_no_label(split))
    if split != TRAIN_SPLIT or opened.irnet is None:
        return empty
    device = next(opened.irnet.parameters()).device
    boundary, _ = opened.irnet.boundary_displacement(normalise(image)[None].to(device))
    return replace(empty, values=boundary[0, 0].float().cpu().numpy(), note="")


def _why_no_label(split: str) -> str:
    return "no refined pseudo-labels yet" if split == TRAIN_SPLIT else f"refinement is of {TRAIN_SPLIT} only"


@torch.no_grad()
def _segment(network: Responder, image: Pixels, sentences: list[str]) -> list[tuple[Map, BoolMask]]:
    """Return a network's map float32 and mask bool (H, W) of each sentence."""
    pixels = to_pixels(image, network.input_size)[None].to(network.device, memory_format=torch.channels_last)
    (encoded,) = network.encode_images(pixels)
    grids = network.respond(encoded, network.encode_texts(sentences))
    maps = compute_map(grids, network.rule, network.input_size, (image.shape[0], image.shape[1]))
    masks = compute_mask(maps, network.rule)
    return list(zip(maps.cpu().numpy(), masks.cpu().numpy(), strict=True))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the panels of one sample, whose ground truth `load_truth` gave."""

    sample: Sample
    hw: tuple[int, int]
    truth: BoolMask | None
    ignored: BoolMask | None

    def read_map(self, row: Row, store: ResponseStore | None) -> Panel:
        """Return the map of the sample's own sentence."""
        if store is None:
            return Panel(row.name, row.tile, "map", note="no responses of this split yet")
        rows = store.rows_of_ref(self.sample.ref.ref_id)
        sent_ids = store.sent_id[rows].tolist()
        if self.sample.expression.sent_id not in sent_ids:
            raise RisError(
                f"{store.path}: holds no sentence {self.sample.expression.sent_id} of ref "
                f"{self.sample.ref.ref_id}; run `ris dump-responses`"
            )
        return self._map_of(row, store, rows[sent_ids.index(self.sample.expression.sent_id)])

    def read_choice(self, row: Row, store: ResponseStore | None, *, has_maps: bool) -> Panel:
        """Return the map that PRMS chose of all the ref's sentences; the note is its sentence."""
        if store is None:
            note = "dumped without PRMS" if has_maps else "no responses of this split yet"
            return Panel(row.name, row.tile, "map", note=note)
        ref = self.sample.ref
        k = store.selected(ref.ref_id)
        chosen = ref.expressions[k]
        note = "this sentence" if chosen == self.sample.expression else f"“{chosen.sentence}”"
        return replace(self._map_of(row, store, store.rows_of_ref(ref.ref_id)[k]), note=note)

    def _map_of(self, row: Row, store: ResponseStore, k: int) -> Panel:
        """Return the map in row k of the store."""
        maps = compute_map(torch.from_numpy(store.read_grids([k])), store.rule, store.input_size, self.hw)
        response, prediction = maps[0].numpy(), compute_mask(maps, store.rule)[0].numpy()
        shown = show_map(maps, store.rule)[0].numpy()
        outcome = self._score(response, prediction)
        return Panel(row.name, row.tile, "map", shown, point=point_of(response), outcome=outcome)

    def read_label(self, row: Row, folder: Path | None) -> Panel:
        """Return the pseudo-label."""
        empty = Panel(row.name, row.tile, "mask", note=_why_no_label(self.sample.split), colour=row.colour)
        if folder is None:
            return empty
        label = load_label(label_path(folder, self.sample.ref.ref_id))
        mask = label == FOREGROUND
        outcome = self._score(mask.astype(np.float32), mask)
        # A mask has no largest value to point with.
        outcome = replace(outcome, point_it=None, point_m=None) if outcome else None
        return replace(empty, values=label, note="" if mask.any() else "empty", outcome=outcome)

    def read_segmentation(self, row: Row, found: tuple[Map, BoolMask] | None) -> Panel:
        """Return a network's mask."""
        empty = Panel(row.name, row.tile, "mask", note=f"no {row.title} yet", colour=row.colour)
        if found is None:
            return empty
        response, mask = found
        note = "" if mask.any() else "nothing found"
        outcome = self._score(response, mask)
        return replace(empty, values=mask.astype(np.uint8), note=note, point=point_of(response), outcome=outcome)

    def read_truth(self) -> Panel:
        """Return the ground-truth mask; without one, an empty mask where there is a box to show."""
        empty = Panel("truth", "Ground truth", "truth", note="the data set has none")
        if self.truth is not None:
            note = "" if self.sample.ref.exists else "nothing is meant"
            return replace(empty, values=self.truth.astype(np.uint8), note=note)
        if self.sample.ref.box_xyxy is None:
            return empty
        return replace(empty, values=np.zeros(self.hw, np.uint8), note="box only")

    def _score(self, response: Map, prediction: BoolMask) -> Outcome | None:
        ref = self.sample.ref
        if self.truth is None and ref.box_xyxy is None:
            return None
        return score_sentence(ref, self.sample.expression, response, prediction, self.truth, self.ignored)
