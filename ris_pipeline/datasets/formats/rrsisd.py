"""Reader of RRSIS-D: REFER's layout of aerial images, with run lengths; its boxes are not read.

The boxes are those of DIOR, corners instead of x, y, w, h, and older than the masks. A size that an image's record
lacks is that of its run lengths. Layout: github.com/Lsan2401/RMSIN, refer/refer.py; what is lost: its issue 32.
"""

from __future__ import annotations

from pathlib import Path

from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.formats import refer
from ris_pipeline.datasets.io.pickles import load_plain_pickle
from ris_pipeline.datasets.io.segmentations import read_rle_size
from ris_pipeline.datasets.records import Reading

list_files = refer.list_files


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the refs of the split in the file's order, with their images, and what cannot be used.

    Raises RisError where a file cannot be read at all.
    """
    path, instances_path = list_files(card, data_root)
    instances = refer.load_instances(instances_path)
    for annotation in instances.annotations.values():
        annotation.pop("bbox", None)
        image = instances.images.get(annotation.get("image_id"))
        if image is not None and (size := read_rle_size(annotation.get("segmentation"))):
            image.setdefault("height", size[0])
            image.setdefault("width", size[1])
    records = load_plain_pickle(path)
    return refer.read_refs(records, path, instances, card, split, lambda name: data_root / card.images)
