"""Reader of Ref-ZOM: REFER's layout with one to many objects, or none, on images of COCO's train2014 and val2014.

Layout: github.com/toggle1995/RIS-DMMI, refer/refer.py and README.
"""

from __future__ import annotations

from pathlib import Path

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.formats import refer
from ris_pipeline.datasets.io.pickles import load_plain_pickle
from ris_pipeline.datasets.records import Reading


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the pickle, under the name of its release where it is there, and instances.json."""
    path, instances = refer.list_files(card, data_root)
    released = path.with_name(f"Ref-ZOM({card.partition}).p")
    return [released if released.is_file() and not path.exists() else path, instances]


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of the split in the file's order, with their images, and what cannot be used.

    An image is in trainval2014 where that folder is there, else in the one that its name speaks of. Raises RisError
    where a file cannot be read at all.
    """
    path, instances_path = list_files(card, data_root)
    folder = data_root / card.images
    merged = folder / "trainval2014"
    is_merged = merged.is_dir()

    def folder_of(name: str) -> Path:
        return merged if is_merged else folder / ("val2014" if name.startswith("COCO_val2014_") else "train2014")

    return refer.read_refs(load_plain_pickle(path), path, refer.load_instances(instances_path), card, split, folder_of)
