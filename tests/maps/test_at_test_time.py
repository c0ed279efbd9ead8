"""How a network is asked at test time, by a responder whose answers can be told by hand."""

from types import SimpleNamespace

import pytest
import torch

from ris_pipeline.errors import RisError
from ris_pipeline.maps.at_test_time import AgainstDrawn, apply_test_time
from ris_pipeline.maps.mirror import Mirrored
from ris_pipeline.maps.rule import Rule
from ris_pipeline.maps.sizes import AtSizes
from tiny import ByHand


class Rows(ByHand):
    """Answers a sentence, which is numbers, with these as the logits of a row of cells."""

    input_size, grid_hw = 4, (1, 4)

    def encode_texts(self, sentences):
        return torch.tensor([[float(number) for number in sentence.split()] for sentence in sentences])

    def respond(self, image, texts, ref_ids=None):
        return texts[:, None]


def test_what_a_drawn_sentence_about_something_else_responds_more_to_is_lost():
    """The first drawn sentence is about the right end; the second is the own one, the third is silent."""
    asked = AgainstDrawn(Rows(), ["-9 -9 1 8", "8 4 0.5 -8", "-9 -9 -9 -9"])
    grids = asked.respond(None, asked.encode_texts(["8 4 0.5 -8", "-9 -9 1 8"]))
    assert grids[:, 0].tolist() == [[8, 4, 0, -8], [-9, -9, 1, 8]]


def test_options_are_put_around_each_other():
    assert isinstance(apply_test_time(Rows(), (), list), Rows)
    asked = apply_test_time(Rows(), ("mirror", "sizes", "rivals", "crf"), lambda: ["1 2 3 4"])
    assert isinstance(asked, AgainstDrawn)
    assert isinstance(asked._responder, Mirrored)
    assert isinstance(asked._responder._responder, AtSizes)


def test_a_score_of_0_has_to_be_nothing():
    rule = Rule(via_input=False, activation="none", to_image="corners", normalise="minmax", threshold=0.5)
    with pytest.raises(RisError, match="whose score of 0 means nothing"):
        AgainstDrawn(SimpleNamespace(rule=rule), ["a"])
