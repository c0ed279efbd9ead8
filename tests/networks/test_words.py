"""The word encoders against transformers' and open_clip's own outputs."""

import pytest
import torch

from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.words import ClipWordEncoder, build_bert
from tiny import TINY, build_random


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A tiny BERT in transformers' format: configuration, safetensors, vocabulary."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "##dish", "circle", "left", "of"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_bert_is_transformers_without_start_and_end(bert_folder):
    import transformers

    words = build_bert(str(bert_folder), is_trained=False).eval()
    model = transformers.BertModel.from_pretrained(bert_folder).eval()
    with torch.no_grad():
        found = words(["A reddish circle", "red"])
        ids = torch.tensor([[2, 5, 6, 7, 8, 3]])  # [CLS] a red ##dish circle [SEP]
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    assert found.shape == (2, 1 + 4, 8)
    torch.testing.assert_close(found[0, 1:5], states[1:5])
    torch.testing.assert_close(found[0, 0], states[1:5].mean(dim=0))
    torch.testing.assert_close(found[1, 0], found[1, 1])  # one word is its own mean
    assert found[1, 2:].abs().sum() == 0


def test_a_trained_bert_needs_no_weights_of_the_folder(bert_folder):
    words = build_bert(str(bert_folder), is_trained=False)
    (bert_folder / "model.safetensors").rename(bert_folder / "away")
    try:
        again = build_bert(str(bert_folder), is_trained=True)
        again.load_state_dict(words.state_dict())
        with pytest.raises(RisError, match="no BERT of that name or in that folder"):
            build_bert(str(bert_folder), is_trained=False)
    finally:
        (bert_folder / "away").rename(bert_folder / "model.safetensors")


def test_a_bert_at_random_spells_words():
    transformers = pytest.importorskip("transformers")
    words = build_bert(None, is_trained=False)
    assert words.width == transformers.BertConfig().hidden_size == 768
    assert sum(parameter.numel() for parameter in words.parameters()) == 108_891_648  # BERT-base without its pooler
    assert words.tokenizer.tokenize("a Red") == ["a", "r", "##e", "##d"]


def test_bert_tells_which_sentences_it_cuts(bert_folder):
    words = build_bert(str(bert_folder), is_trained=False)
    fits, long = " ".join(["red"] * 18), " ".join(["red"] * 19)
    assert words.find_cut([fits, long]) == [long]


def test_clip_words_are_in_the_space_of_the_sentence():
    clip = build_random(TINY)
    tokens = clip.tokenize(["a red circle", "red"])
    states, sentence = clip.words(tokens)
    expected = states @ clip.model.text_projection
    words = ClipWordEncoder(build_random(TINY))
    with torch.no_grad():
        found = words(["a red circle", "red"])
    assert found.shape == (2, 1 + 3, TINY["embed_dim"])
    torch.testing.assert_close(found[:, 0], sentence)
    torch.testing.assert_close(found[0, 1:4], expected[0, 1:4])
    torch.testing.assert_close(found[1, 1], expected[1, 1])
    assert found[1, 2:].abs().sum() == 0
    assert words.n_tokens == Clip.from_config(TINY).n_tokens
