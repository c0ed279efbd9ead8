"""Reader of gRefCOCO: REFER's layout with sentences about several objects, or none, and the refs in JSON.

Layout: github.com/henghuiding/gRefCOCO, grefer.py.
"""

from __future__ import annotations

from pathlib import Path

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.formats import refer
from ris_pipeline.datasets.io.files import load_json
from ris_pipeline.datasets.io.pickles import load_plain_pickle
from ris_pipeline.datasets.records import Reading


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the files that hold the annotations: grefs(…).json, or grefs(…).p where only that is there."""
    folder = data_root / card.annotations
    refs = folder / f"grefs({card.partition}).json"
    pickled = refs.with_suffix(".p")
    return [pickled if pickled.is_file() and not refs.is_file() else refs, folder / "instances.json"]


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of the split in the file's order, with their images, and what cannot be used.

    Raises RisError where a file cannot be read at all.
    """
    path, instances_path = list_files(card, data_root)
    records = load_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    instances = refer.load_instances(instances_path)
    return refer.read_refs(records, path, instances, card, split, lambda name: data_root / card.images)
