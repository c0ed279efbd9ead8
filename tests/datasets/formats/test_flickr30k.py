"""Flickr30k Entities in its layout: captions with chains of phrases, and boxes as XML."""

import pytest

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError

SENTENCES = """\
[/EN#1/people Two young men] in [/EN#2/clothing a blue shirt] stand on [/EN#3/scene a street] .
[/EN#1/people Two friends] laugh at [/EN#0/notvisual something] near [/EN#4/animals/other the dog] .
"""
OBJECT = "<object>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
XML = (
    "<annotation>\n<filename>1000.jpg</filename>\n"
    "<size><width>20</width><height>10</height><depth>3</depth></size>\n"
    + OBJECT.format("<name>1</name>", 1, 1, 5, 10)
    + OBJECT.format("<name>1</name><name>2</name>", 7, 2, 10, 9)
    + "<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>"
    + "<object><name>4</name><scene>0</scene><nobndbox>1</nobndbox></object>\n</annotation>"
)


@pytest.fixture
def save(tmp_path):
    def save(xml=XML):
        folder = tmp_path / "flickr30k_entities"
        for name in ("Sentences", "Annotations"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "flickr30k-images").mkdir(exist_ok=True)
        for split, stems in (("train", ""), ("val", ""), ("test", "1000\n")):
            (folder / f"{split}.txt").write_text(stems)
        (folder / "Sentences" / "1000.txt").write_text(SENTENCES)
        (folder / "Annotations" / "1000.xml").write_text(xml)
        return tmp_path

    return save


def test_chains_with_boxes(save):
    root = save()
    dataset = load_dataset(load_card("flickr30k-entities"), root, "test")
    men, shirt = dataset.refs  # the street is the scene, the dog has no box, and something is not visual
    assert [e.sentence for e in men.expressions] == ["Two young men", "Two friends"]
    assert [e.sentence for e in shirt.expressions] == ["a blue shirt"]
    # Counted from 0, with the last pixels inside.
    assert men.boxes_xyxy == ((0, 0, 4, 9), (6, 1, 9, 8))
    assert men.edges_xyxy == (0, 0, 10, 10)
    assert shirt.boxes_xyxy == ((6, 1, 9, 8),)
    assert not men.has_mask
    assert dataset.images[men.image_id].path == root / "flickr30k-images" / "1000.jpg"
    assert dataset.images[men.image_id].hw == (10, 20)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", "is not one of Flickr30k Entities' annotations"),
        ("<width>20</width>", "", "is not one of Flickr30k Entities' annotations"),
        ("<xmax>5</xmax>", "<xmax>25</xmax>", "outside the image of 20×10"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "must not have a document type"),
    ],
)
def test_faulty_files(save, old, new, message):
    with pytest.raises(RisError, match=r"1000\.xml.*" + message):
        load_dataset(load_card("flickr30k-entities"), save(XML.replace(old, new, 1)), "test")


def test_what_is_missing_is_named(save):
    root = save()
    (root / "flickr30k_entities" / "Sentences" / "1000.txt").unlink()
    with pytest.raises(RisError, match=r"flickr30k-entities is not complete: put .*Sentences in place"):
        load_dataset(load_card("flickr30k-entities"), root, "test")
