import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from ris_pipeline.config import PseudolabelConfig, Step1Config, Step2Config
from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.load import (
    aux_from_config,
    freeze,
    irnet_from_config,
    step1_from_config,
    step2_from_config,
)
from ris_pipeline.networks.parts.stages import ClipStages, ResNetStages
from ris_pipeline.networks.weights.clip_weights import save_compact
from tiny import TINY

PIXELS = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP as a directory, as the shipped one is."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_compact(Clip.from_config(TINY), folder / "model.safetensors", [1, 2, 3, 49406, 49407])
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    return str(folder)


@pytest.fixture
def step1_config(clip_folder):
    return Step1Config(clip=clip_folder, clip_weights=None, aux_clip=clip_folder, aux_weights=None, hidden=8)


@pytest.fixture
def step2_config(clip_folder):
    return Step2Config(clip=clip_folder, clip_weights=None)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save(network, path):
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


def test_fresh_networks_start_from_the_clips_weights(step1_config, step2_config):
    aux = aux_from_config(step1_config)
    for network in (step1_from_config(step1_config), step2_from_config(step2_config)):
        assert same(network.clip.state_dict(), aux.state_dict())
        assert network.image_encoder is None  # the same CLIP reads the images
        assert any(parameter.requires_grad for parameter in network.parameters())
    assert step1_from_config(step1_config).vis_project.out_channels == 8


def test_aux_is_frozen(step1_config):
    aux = aux_from_config(step1_config)
    assert not aux.training
    assert not any(parameter.requires_grad for parameter in aux.parameters())


@pytest.mark.parametrize(
    ("build", "config"), [(step1_from_config, "step1_config"), (step2_from_config, "step2_config")]
)
def test_trained_networks_have_all_weights_of_the_file(build, config, request, tmp_path):
    config = request.getfixturevalue(config)
    torch.manual_seed(1)
    trained = build(config)
    with torch.no_grad():
        for value in trained.state_dict().values():
            value.copy_(torch.rand_like(value.float()))
    path = save(trained, tmp_path / "model.safetensors")
    loaded = freeze(build(config, path))
    assert same(loaded.state_dict(), trained.state_dict())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_checkpoint_needs_no_other_weights(step1_config, tmp_path):
    """The file a CLIP was started from may be gone when its checkpoint is read."""
    path = save(step1_from_config(step1_config), tmp_path / "model.safetensors")
    gone = dataclasses.replace(step1_config, clip_weights=str(tmp_path / "gone.pt"))
    step1_from_config(gone, path)
    with pytest.raises(RisError, match=r"gone\.pt"):
        step1_from_config(gone)


def test_weights_of_another_network_are_an_error(step1_config, step2_config, tmp_path):
    path = save(step2_from_config(step2_config), tmp_path / "model.safetensors")
    with pytest.raises(RisError, match="not the weights of this network"):
        step1_from_config(step1_config, path)


@pytest.mark.parametrize("n", [0, 2])
def test_frozen_levels_are_frozen(step1_config, n):
    network = step1_from_config(dataclasses.replace(step1_config, frozen_levels=n)).train()
    visual = network.clip.model.visual
    assert visual.layer1[0].conv1.weight.requires_grad == (n == 0)
    assert visual.bn1.training == (n == 0)
    assert visual.layer2[0].conv1.weight.requires_grad
    assert visual.layer2[0].bn1.training


def test_another_image_encoder_is_named_in_the_weights(step1_config):
    network = step1_from_config(dataclasses.replace(step1_config, image_encoder="resnet50"))
    names = network.state_dict()
    assert any(name.startswith("image_encoder.") for name in names)
    assert network.vis_project.in_channels == 2048
    assert step1_from_config(step1_config).vis_project.in_channels == 256


def test_projections_start_at_clips_own(clip_folder):
    """V and T then are what CLIP itself compares: the values of its pooling, position by position, and its texts."""
    config = Step1Config(clip=clip_folder, clip_weights=None, hidden=6, project_from_clip=True)
    network = step1_from_config(config).eval()
    pooling = network.clip.model.visual.attnpool
    tokens = network.clip.tokenize(["a red star"])
    with torch.no_grad():
        cells = network.clip.levels(PIXELS)[3].flatten(2).permute(0, 2, 1)  # (1, hw, C)
        expected = pooling.c_proj(pooling.v_proj(cells))
        V = network.encode_image(PIXELS).flatten(2).permute(0, 2, 1)
        torch.testing.assert_close(V, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
        T = network.encode_text(tokens)
        text = network.clip.encode_text(tokens)
        torch.testing.assert_close(T, torch.nn.functional.normalize(text, dim=-1), atol=1e-5, rtol=1e-4)
    with pytest.raises(RisError, match="project_from_clip"):
        step1_from_config(dataclasses.replace(config, hidden=8))


def test_irnet_stands_on_a_clip_or_a_timm_resnet(clip_folder):
    on_clip = irnet_from_config(PseudolabelConfig(irn_backbone=clip_folder, irn_weights=None))
    assert isinstance(on_clip.backbone, ClipStages)
    edge, displacement = on_clip.eval().boundary_displacement(PIXELS)
    assert (edge.shape, displacement.shape) == ((1, 1, 16, 16), (1, 2, 16, 16))
    on_resnet = irnet_from_config(PseudolabelConfig(irn_backbone="resnet50", irn_weights=None))
    assert isinstance(on_resnet.backbone, ResNetStages)
    assert on_resnet.backbone.stage_channels == (64, 256, 512, 1024, 2048)


def test_step2_starts_with_step1s_encoders_and_refuses_others(step1_config, step2_config, tmp_path):
    step1 = step1_from_config(step1_config)
    with torch.no_grad():
        for parameter in step1.clip.parameters():
            parameter.add_(1.0)
    checkpoint = save(step1, tmp_path / "model.safetensors")
    assert same(step2_from_config(step2_config, step1=checkpoint).clip.state_dict(), step1.clip.state_dict())
    save_file({"clip.model.logit_scale": torch.zeros(())}, tmp_path / "other.safetensors")
    with pytest.raises(RisError, match=r"other\.safetensors: not the weights of this network"):
        step2_from_config(step2_config, step1=tmp_path / "other.safetensors")
