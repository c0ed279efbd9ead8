import subprocess
import sys

import pytest

from ris_pipeline.datasets.card import load_card
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError


def test_a_missing_data_set_names_every_file_and_its_place(tmp_path):
    with pytest.raises(RisError) as caught:
        load_dataset(load_card("refcocog@umd"), tmp_path, "val")
    message = str(caught.value)
    for place in ("refer/refcocog/refs(umd).p", "refer/refcocog/instances.json", "train2014"):
        assert str(tmp_path / place) in message
    assert "data/README.md" in message


@pytest.mark.parametrize("name", ["shapes", "shapes+", "shapesg"])
def test_missing_shapes_are_to_be_made(name, tmp_path):
    with pytest.raises(RisError, match="`ris data make-shapes`"):
        load_dataset(load_card(name), tmp_path, "train")


def test_a_split_that_the_card_lacks(tmp_path):
    with pytest.raises(RisError, match="refcocog-google has no split 'test'; refcocog-umd has it"):
        load_dataset(load_card("refcocog@google"), tmp_path, "test")


def test_reading_data_needs_no_torch():
    code = "import sys, ris_pipeline.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
