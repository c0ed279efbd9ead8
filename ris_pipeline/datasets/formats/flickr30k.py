"""Reader of Flickr30k Entities: the phrases of captions and the boxes of what they mean; there are no masks.

`Sentences/<image>.txt` has a caption a line, with phrases as [/EN#<chain>/<type> words]; `Annotations/<image>.xml` the
boxes of each chain, of which there may be several. A chain of an image is a ref, and its phrases are the sentences.
Phrases of chain 0, and of chains without a box (a scene, or nothing to be seen), are no part of the task.
Layout: github.com/BryanPlummer/flickr30k_entities, flickr30k_entities_utils.py and README.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from ris_pipeline.arrays import Box
from ris_pipeline.datasets.card import Card
from ris_pipeline.datasets.io.files import check_kind, read_limited, resolve_inside
from ris_pipeline.datasets.record_checks import check_ref, parse_box, parse_hw
from ris_pipeline.datasets.records import Annotation, Expression, Image, Reading, Ref, hash_names
from ris_pipeline.errors import RisError

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/\S*)? ([^\]]*)\]")


def list_files(card: Card, data_root: Path) -> list[Path]:
    """Return the lists of the splits' images, and the files of all images."""
    folder = data_root / card.annotations
    lists = [folder / f"{split}.txt" for split in card.splits]
    sentences = sorted((folder / "Sentences").glob("*.txt")) or [folder / "Sentences"]
    return [*lists, *sentences, *(sorted((folder / "Annotations").glob("*.xml")) or [folder / "Annotations"])]


def read_split(card: Card, data_root: Path, split: str) -> Reading:
    """Return the chains of the split as refs, with their images, and what cannot be used.

    An id is a hash of names. Raises RisError where the split's list cannot be read.
    """
    folder = data_root / card.annotations
    reading = Reading()
    for stem in _read(folder / f"{split}.txt").split():
        with reading.record(f"{stem}.jpg"):
            image_path = resolve_inside(data_root / card.images, f"{stem}.jpg", str(folder / f"{split}.txt"))
            path = resolve_inside(folder / "Annotations", f"{stem}.xml", str(folder / f"{split}.txt"))
            hw, boxes = _read_boxes(path)
            image = Image(hash_names(stem), image_path, hw)
            for chain, phrases in _read_phrases(folder / "Sentences" / f"{stem}.txt").items():
                if chain in boxes:
                    ref_id = hash_names(stem, chain)
                    with reading.record(ref_id, image_path.name):
                        annotations = tuple(Annotation(box, box_is_inclusive=True) for box in boxes[chain])
                        expressions = tuple(Expression(hash_names(stem, key), text) for key, text in phrases)
                        ref = Ref(ref_id, image.image_id, split, expressions, annotations, name=f"{stem}#{chain}")
                        check_ref(ref, image, f"{path}: chain {chain}")
                        reading.images[image.image_id] = image
                        reading.refs.append(ref)
    return reading


def _read_phrases(path: Path) -> Mapping[str, list[tuple[str, str]]]:
    """Return the phrases of each chain, with a key of their place."""
    phrases: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for n, line in enumerate(_read(path).splitlines()):
        for match in _PHRASE.finditer(line):
            phrases[match[1]].append((f"{n}:{match.start()}", match[2].strip()))
    phrases.pop("0", None)
    return phrases


def _read_boxes(path: Path) -> tuple[tuple[int, int], Mapping[str, list[Box]]]:
    """Return the image's height and width, and the boxes of each chain; right and bottom are the last pixels inside."""
    text = _read(path)
    if "<!" in text:  # a document type may hold entities, which grow without bound
        raise RisError(f"{path}: it must not have a document type or comments; fetch it again")
    try:
        root = ElementTree.fromstring(text)
        hw = parse_hw(int(root.findtext("size/height", "")), int(root.findtext("size/width", "")), str(path))
        boxes: defaultdict[str, list[Box]] = defaultdict(list)
        for element in root.iter("object"):
            edges = element.find("bndbox")
            if edges is not None:
                # Counted from 1, as MATLAB does.
                values = [int(edges.findtext(side, "")) - 1 for side in ("xmin", "ymin", "xmax", "ymax")]
                box = parse_box(values, hw, str(path))
                for name in element.findall("name"):
                    boxes[str(name.text)].append(box)
    except (ElementTree.ParseError, ValueError) as error:
        raise RisError(f"{path} is not one of Flickr30k Entities' annotations ({error}); fetch it again") from error
    return hw, boxes


def _read(path: Path) -> str:
    try:
        data = read_limited(path)
        if path.suffix != ".xml":
            check_kind(path, data)
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise RisError(f"{path} cannot be read ({error}); fetch it again") from error
