"""Proposals by a SAM of random weights: their form, and that a run goes on where another ended."""

import json

import numpy as np
import pytest
import torch

from calls import places_in
from ris_pipeline.chain.context import open_context
from ris_pipeline.datasets.io.images import size_of
from ris_pipeline.maps.proposals import load_proposals, proposals_path

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[sam]'")


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    """The folder of a tiny SAM that trusts each of its masks, and is sure of each pixel."""
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "mlp_dim": 8}
    config = transformers.SamConfig(
        vision_config={
            **small, "image_size": 64, "output_channels": 8, "window_size": 2, "global_attn_indexes": [0],
            "num_pos_feats": 4, "initializer_range": 0.02,
        },
        prompt_encoder_config={
            "hidden_size": 8, "image_size": 64, "image_embedding_size": 4, "mask_input_channels": 4,
        },
        mask_decoder_config={**small, "iou_head_hidden_dim": 8, "iou_head_depth": 2},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.SamModel(config)
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(1)
        for head in model.mask_decoder.output_hypernetworks_mlps:
            head.proj_out.weight *= 1e12
    folder = tmp_path_factory.mktemp("sam")
    model.save_pretrained(folder)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    transformers.SamImageProcessor(**sizes).save_pretrained(folder)
    return folder


@pytest.fixture
def root(tmp_path, write_tiny_card, call_ris):
    """A folder with the tiny data set."""
    write_tiny_card(tmp_path)
    assert call_ris("data", "make-shapes", **places_in(tmp_path)) == 0
    return tmp_path


def test_a_file_of_run_lengths_for_each_image_and_none_twice(root, sam, call_ris, capsys):
    out = root / "proposals"
    words = ("propose", "--out", out, "--sam", sam, "--points", 2)
    assert call_ris(*words, **places_in(root)) == 0
    images = list(open_context(root / "tiny.toml", data_root=root / "data").open_dataset("train").images.values())
    assert len(list(out.iterdir())) == len(images)
    masks = [load_proposals(out, image, size_of(image)) for image in images]
    fullest = max(range(len(images)), key=lambda k: len(masks[k]))
    assert len(masks[fullest]) > 0
    gone, kept = (proposals_path(out, images[k]) for k in (fullest, fullest - 1))
    gone.unlink()
    kept.write_text(kept.read_text() + " ")
    capsys.readouterr()
    assert call_ris(*words, **places_in(root), json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "written": 1}
    np.testing.assert_array_equal(load_proposals(out, images[fullest], size_of(images[fullest])), masks[fullest])
    assert kept.read_text().endswith(" ")
    gone.unlink()
    assert call_ris("propose", "--out", out, "--sam", root, **places_in(root)) == 1
    assert "no SAM in transformers' form" in capsys.readouterr().err
