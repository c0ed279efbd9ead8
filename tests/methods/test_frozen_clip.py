"""What the training-free methods have in common: background, template, rivals."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from ris_pipeline.config import resolve
from ris_pipeline.errors import RisError
from ris_pipeline.methods.configs import COCO_BACKGROUND, FrozenClipConfig
from ris_pipeline.methods.frozen_clip import FrozenClip, find_rivals

CPU = torch.device("cpu")


def test_sentences_and_background_stand_in_the_template(tiny_clip):
    settings = {"clip": str(tiny_clip), "input_size": 64, "template": "a photo of {}.", "background": "sky, tall tree"}
    asked = FrozenClip(resolve(FrozenClipConfig, settings), CPU)
    plain = FrozenClip(resolve(FrozenClipConfig, settings, {"template": "{}", "background": "a photo of sky."}), CPU)
    assert asked.background.shape == (2, 16)
    torch.testing.assert_close(asked.encode_texts(["the man"]), plain.encode_texts(["a photo of the man."]))
    torch.testing.assert_close(asked.background[:1], plain.background)
    tokens = open_clip.tokenize(["a photo of tall tree."], context_length=20)
    torch.testing.assert_close(asked.background[1:], F.normalize(asked.clip.model.encode_text(tokens), dim=-1))
    torch.testing.assert_close(asked.background.norm(dim=-1), torch.ones(2))


def test_a_sentence_is_cut_where_it_is_too_long_in_the_template(tiny_clip):
    """19 pieces fit without, and 14 in a template of five."""
    settings = {"clip": str(tiny_clip), "input_size": 64, "template": "a photo of {}."}
    short, long = " ".join(["a"] * 10), " ".join(["a"] * 15)
    assert FrozenClip(resolve(FrozenClipConfig, settings), CPU).find_cut([short, long]) == [long]
    assert FrozenClip(resolve(FrozenClipConfig, settings, {"template": "{}"}), CPU).find_cut([short, long]) == []


def test_rivals_are_of_other_objects_and_in_other_words():
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])  # the first and the last say the same
    assert find_rivals(texts, [7, 7, 9, 9]) == [[2], [2, 3], [0, 1], [1]]
    assert find_rivals(texts, None) == [[], [], [], []]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"template": "a photo"}, r"template = 'a photo': should have \{\} once"),
        ({"template": "{} and {}"}, r"should have \{\} once"),
        ({"background": "sky, , tree"}, "should be words with commas between them"),
        ({"background": ""}, "should be words"),
    ],
)
def test_settings_that_cannot_be_meant(settings, reason):
    with pytest.raises(RisError, match=reason):
        resolve(FrozenClipConfig, settings)


def test_a_size_without_whole_patches_is_refused(tiny_clip):
    assert len(COCO_BACKGROUND.split(",")) == 23
    with pytest.raises(RisError, match="500×500 pixels has no whole patches of 16×16"):
        FrozenClip(FrozenClipConfig(clip_weights=None, input_size=500), CPU)
