"""Step-1 against the paper's formulas in numpy, and its names and sizes against the released checkpoint's."""

import math

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from by_hand import softmax, unit
from ris_pipeline.errors import RisError
from ris_pipeline.networks.backbones import load_timm_encoder
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.bilateral_prompt import BilateralPrompt
from ris_pipeline.networks.step1 import Step1
from tiny import TINY, Pyramid


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return Clip.from_config(TINY)


@pytest.fixture
def step1(clip):
    torch.manual_seed(1)
    network = Step1(clip, clip, hidden=5).double()
    randomise(network.attn_fusion)
    return network


def randomise(module):
    """Draw all values anew: a fresh InstanceNorm has scale 1 and bias 0, which would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()


def reference_score(network, V, T):
    """S (B, N, h, w) of V (B, C, h, w) and T (N, C), image by image, in numpy."""
    P = {name: value.numpy() for name, value in network.attn_fusion.state_dict().items()}
    B, C, h, w = V.shape
    N = len(T)

    def conv(x, name):  # x (hw, C)
        return x @ P[f"{name}.0.weight"][:, :, 0, 0].T + P[f"{name}.0.bias"]

    def linear(x, name):
        return x @ P[f"{name}.0.weight"].T + P[f"{name}.0.bias"]

    def instance_norm(x, name):
        centred = x - x.mean(axis=0)
        normed = centred / np.sqrt((centred**2).mean(axis=0) + 1e-5)
        return normed * P[f"{name}.1.weight"] + P[f"{name}.1.bias"]

    S = np.empty((B, N, h, w))
    for i in range(B):
        v = V[i].reshape(C, h * w).T
        Qv, Kv, Vv = (np.maximum(instance_norm(conv(v, n), n), 0) for n in ("v_proj1", "v_proj2", "v_proj3"))
        Qt, Kt, Vt = (np.maximum(linear(T, n), 0) for n in ("t_proj1", "t_proj2", "t_proj3"))
        Av = softmax(Qv @ Kt.T / math.sqrt(C), axis=1)
        At = softmax(Qt @ Kv.T / math.sqrt(C), axis=1)
        v_new = v + 0.1 * instance_norm(conv(Av @ Vt, "v_output"), "v_output")
        t_new = T + 0.1 * linear(At @ Vv, "t_output")
        S[i] = (t_new @ v_new.T).reshape(N, h, w) / 0.07
    return S


@pytest.fixture
def features():
    rng = np.random.default_rng(3)
    return unit(rng.normal(size=(3, 5, 2, 3)), 1), unit(rng.normal(size=(3, 5)), 1)


def test_scores_of_all_texts_on_each_image(step1, features):
    V, T = features
    S = step1.respond(torch.tensor(V), torch.tensor(T[:2])).detach()
    # the scale is a float32 parameter: 1e-7 relative
    np.testing.assert_allclose(S, reference_score(step1, V, T[:2]), rtol=1e-6, atol=1e-6)


def test_scores_one_text_at_a_time(step1, features):
    V, T = features
    alone = np.stack([[reference_score(step1, V[i : i + 1], T[j : j + 1])[0, 0] for j in range(3)] for i in range(3)])
    one_image = step1.respond_each(torch.tensor(V[1:2]), torch.tensor(T)).detach()
    np.testing.assert_allclose(one_image, alone[1], rtol=1e-6, atol=1e-6)
    own_image = step1.respond_each(torch.tensor(V), torch.tensor(T)).detach()
    np.testing.assert_allclose(own_image, alone[[0, 1, 2], [0, 1, 2]], rtol=1e-6, atol=1e-6)
    two_each = step1.respond_each(torch.tensor(V[:2]), torch.tensor(T[[0, 1, 1, 2]])).detach()
    np.testing.assert_allclose(two_each, alone[[0, 0, 1, 1], [0, 1, 1, 2]], rtol=1e-6, atol=1e-6)


def test_the_other_texts_change_a_score_unless_alone(step1, features):
    V, T = (torch.tensor(x) for x in features)
    together = step1.respond(V, T)[0]
    assert not torch.allclose(together, step1.respond_each(V[:1], T), atol=1e-3)


def test_features_have_length_one(step1, clip):
    V = step1.encode_image(torch.randn(2, 3, 96, 64, dtype=torch.double))
    assert V.shape == (2, 5, 3, 2)
    torch.testing.assert_close(V.pow(2).sum(1), torch.ones(2, 3, 2, dtype=torch.double))
    T = step1.encode_text(clip.tokenize(["red ball", "the left one"]))
    torch.testing.assert_close(T.pow(2).sum(1), torch.ones(2, dtype=torch.double))


def test_forward_gives_every_pair(step1, clip):
    S = step1(torch.randn(2, 3, 64, 64, dtype=torch.double), clip.tokenize(["a", "b", "c"]))
    assert S.shape == (2, 3, 2, 2)


def test_names_are_those_of_the_released_checkpoint(step1):
    new = {name for name in step1.state_dict() if not name.startswith("clip.model.")}
    expected = {"logit_scale"}
    expected |= {f"{part}.{kind}" for part in ("vis_project", "lan_project") for kind in ("weight", "bias")}
    modules = [f"v_proj{i}.{j}" for i in (1, 2, 3) for j in (0, 1)] + [f"t_proj{i}.0" for i in (1, 2, 3)]
    modules += ["v_output.0", "v_output.1", "t_output.0"]
    expected |= {f"attn_fusion.{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert new == expected


def test_sizes_are_those_of_the_released_network():
    with torch.device("meta"):
        assert sum(p.numel() for p in BilateralPrompt(1024).parameters()) == 8_404_992
        config = open_clip.get_model_config("RN50-quickgelu")
        clip = Clip.from_config(config)
        network = Step1(clip, clip, hidden=1024)
    assert sum(p.numel() for p in network.parameters()) == 113_559_906


def test_optimiser_groups_hold_all_but_the_scale(step1):
    backbone, new = step1.parameter_groups(lr=5e-5, backbone_lr=5e-6, weight_decay=0.01)
    assert (backbone["lr"], new["lr"]) == (5e-6, 5e-5)
    assert backbone["weight_decay"] == new["weight_decay"] == 0.01
    assert {id(p) for p in backbone["params"]} == {id(p) for p in step1.clip.parameters()}
    modules = (step1.vis_project, step1.lan_project, step1.attn_fusion)
    assert {id(p) for p in new["params"]} == {id(p) for m in modules for p in m.parameters()}
    assert step1.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_frozen_levels_of_clip_keep_values_and_statistics(step1):
    step1.train()
    step1.freeze_levels(2)
    visual = step1.clip.model.visual
    step1.train()
    fixed = (visual.conv1, visual.bn3, visual.layer1)
    assert not any(p.requires_grad for module in fixed for p in module.parameters())
    assert not any(m.training for module in fixed for m in module.modules())
    free = (visual.layer2, step1.clip.model.transformer)
    assert all(p.requires_grad for module in free for p in module.parameters())
    assert visual.layer2.training
    backbone, _ = step1.parameter_groups(1, 1, 0)
    assert id(visual.conv1.weight) not in {id(p) for p in backbone["params"]}
    before = visual.bn1.running_mean.clone()
    step1.encode_image(torch.randn(2, 3, 64, 64, dtype=torch.double))
    assert torch.equal(visual.bn1.running_mean, before)


def test_another_image_encoder(clip):
    network = Step1(clip, Pyramid(), hidden=4)
    assert network.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 4, 2, 2)
    assert "image_encoder.layer4.weight" in network.state_dict()
    network.freeze_levels(1)
    assert not network.image_encoder.bn1.training
    assert not network.image_encoder.conv1.weight.requires_grad
    assert network.image_encoder.layer1.weight.requires_grad
    backbone, _ = network.parameter_groups(1, 1, 0)
    assert id(network.image_encoder.layer1.weight) in {id(p) for p in backbone["params"]}


def test_freezing_an_encoder_without_stages_says_so(clip):
    class Flat(nn.Module):
        level_channels = (1, 1, 1, 1)

    network = Step1(clip, Flat(), hidden=4)
    network.freeze_levels(0)  # nothing to freeze
    with pytest.raises(RisError, match="Flat has no stages to freeze"):
        network.freeze_levels(1)


@pytest.mark.parametrize(
    ("name", "stem", "stages"),
    [
        ("swin_tiny_patch4_window7_224", "patch_embed", "layers"),
        ("convnext_atto", "stem", "stages"),
        ("resnet18", "conv1", ""),
    ],
)
def test_the_stages_of_timms_networks_freeze_in_order(clip, name, stem, stages):
    network = Step1(clip, load_timm_encoder(name, None), hidden=4)
    network.freeze_levels(2)
    model = network.image_encoder.model
    parts = model.get_submodule(stages) if stages else [model.layer1, model.layer2, model.layer3, model.layer4]

    def is_fixed(module):
        return not any(p.requires_grad for p in module.parameters())

    assert is_fixed(model.get_submodule(stem))
    assert [is_fixed(part) for part in parts] == [True, False, False, False]
