"""GroupViT against transformers' own outputs, at its own size and at others."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ris_pipeline.errors import DownloadError, RisError
from ris_pipeline.networks.groupvit import GroupVitSizes, build_groupvit

SIZES = GroupVitSizes(
    side=64, patch=16, width=24, heads=2, depth=1, n_first_groups=6, n_groups=3, text_width=16, text_heads=2,
    text_layers=1, n_tokens=20, projection=12, embed_dim=8,
)  # fmt: skip
SENTENCES = ["the red star", "left circle", "a big striped ring at the top"]


def test_without_transformers_the_pip_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RisError, match=r"pip install -c constraints.txt -e '\.\[methods\]'"):
        build_groupvit(SIZES, None)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[methods]'")


@pytest.fixture
def network(transformers):
    """Random values everywhere, so that no part goes unnoticed."""
    torch.manual_seed(0)
    network = build_groupvit(SIZES, None)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                buffer.normal_()
    return network.eval()


def noise(n, side):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_features_and_maps_are_those_of_transformers(network):
    """Its segmentation logits are scale² · Σ_g share · cosine, at the size of the image."""
    model, tokens, pixels = network.model, network.tokenize(SENTENCES), noise(2, 64)
    expected = model(input_ids=tokens, pixel_values=pixels, output_segmentation=True)

    segments, shares = network.group(pixels)
    text = network.encode_text(tokens)
    torch.testing.assert_close(text, expected.text_embeds)
    torch.testing.assert_close(network.project(segments.mean(dim=1)), expected.image_embeds)
    maps = torch.einsum("bge,ne,bghw->bnhw", network.project(segments), text, shares)
    maps = F.interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False) * model.logit_scale.exp() ** 2
    torch.testing.assert_close(maps, expected.segmentation_logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_image_of_another_size(network):
    """Positions in between by bicubic resizing, computed here; transformers' forward pass refuses such an image."""
    vision, pixels = network.model.vision_model, noise(1, 96)
    with pytest.raises(ValueError, match="doesn't match"):
        vision(pixels)
    segments, shares = network.group(pixels)
    assert shares.shape == (1, 3, 6, 6)
    np.testing.assert_allclose(shares.sum(dim=1), 1, rtol=1e-5)
    assert (shares >= 0).all()

    table = vision.embeddings.position_embeddings.view(1, 4, 4, 24).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(6, 6), mode="bicubic", align_corners=False)
    larger = build_groupvit(replace(SIZES, side=96), None)
    values = network.model.state_dict() | {
        "vision_model.embeddings.position_embeddings": table.flatten(2).transpose(1, 2)
    }
    larger.model.load_state_dict(values)
    torch.testing.assert_close(larger.eval().model.vision_model(pixels).last_hidden_state, segments)


@torch.no_grad()
def test_padding_changes_nothing(network):
    tokens = network.tokenize(["the red star"])
    expected = network.model.text_projection(network.model.text_model(input_ids=tokens).pooler_output)
    torch.testing.assert_close(network.encode_text(tokens), F.normalize(expected, dim=-1))


def test_statistics_stay_as_loaded(network):
    network.train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.project(network.group(noise(2, 64))[0])
    network.encode_text(network.tokenize(SENTENCES))
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert network.model.vision_model.training


def test_random_groups_differ_from_the_start(transformers):
    """In transformers' own start all are 0, and groups that are equal learn the same."""
    torch.manual_seed(0)
    stage = build_groupvit(SIZES, None).model.vision_model.encoder.stages[0]
    assert stage.group_token.detach().std(dim=1).min() > 0


def equal(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_weights_by_name_from_a_folder_and_from_a_file(network, tmp_path):
    network.model.save_pretrained(tmp_path / "folder")
    assert equal(build_groupvit(SIZES, str(tmp_path / "folder")), network)
    # As older versions wrote it: by pickle, with the numbers of the positions.
    state = network.model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(20)[None]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert equal(build_groupvit(SIZES, str(tmp_path / "pytorch_model.bin")), network)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    assert equal(build_groupvit(SIZES, str(tmp_path / "model.safetensors")), network)


def test_weights_of_another_size_are_refused(network, tmp_path):
    network.model.save_pretrained(tmp_path)
    with pytest.raises(RisError, match=r"not the weights of this network \(.*misshapen: .*for"):
        build_groupvit(replace(SIZES, width=48), str(tmp_path))


def test_a_folder_of_something_else_is_refused(transformers, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RisError, match="not a GroupViT in transformers' form"):
        build_groupvit(SIZES, str(tmp_path))


class Payload:
    """What a hostile pickle holds: a call that the reader makes."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_a_folder_with_a_payload_does_not_run_it(network, tmp_path):
    network.model.config.save_pretrained(tmp_path)
    torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RisError, match="its weights hold more than tensors"):
        build_groupvit(SIZES, str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_tag_that_does_not_download(transformers, monkeypatch):
    def fail(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(transformers.GroupViTModel, "from_pretrained", fail)
    with pytest.raises(DownloadError, match=r"nvidia/groupvit-gcc-yfcc did not download \(no connection\): give a"):
        build_groupvit(SIZES, "nvidia/groupvit-gcc-yfcc")


def test_the_defaults_are_groupvits_sizes(transformers):
    """Every tensor that transformers expects of the released weights, whose sizes are its own defaults."""
    from ris_pipeline.methods.configs import GroupVitConfig
    from ris_pipeline.methods.groupvit import build

    with torch.device("meta"):
        expected = transformers.GroupViTModel(transformers.GroupViTConfig()).state_dict()
        found = build(GroupVitConfig(weights=None), None).model.state_dict()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }
