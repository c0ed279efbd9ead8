"""AMR's modules against the formulas in numpy, and its two branches on small ResNets."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from ris_pipeline.errors import RisError
from ris_pipeline.networks.amr import ActivationModulation, Amr, activate, classify, gaussian_gate, insert_modulation
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.stages import ClipStages, ResNetStages
from tiny import TINY, build_random


def density(z):
    """The normal density at each value of z, of its own mean and (unbiased) standard deviation."""
    mean, deviation = z.mean(), z.std(ddof=1)
    return np.exp(-((z - mean) ** 2) / (2 * deviation**2)) / (np.sqrt(2 * np.pi) * deviation)


def test_the_gate_prefers_what_is_near_the_mean():
    gate = gaussian_gate(torch.tensor([[-1.0, 0.0, 1.0]]))[0]  # mean 0, standard deviation 1
    assert gate.tolist() == pytest.approx([0.24197, 0.39894, 0.24197], abs=1e-5)


def test_modulation_by_its_formula():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    amm = ActivationModulation(32).double()
    nn.init.constant_(amm.norm.weight, 1.5)
    nn.init.constant_(amm.norm.bias, 0.3)
    x = rng.normal(size=(2, 32, 5, 6))
    found = amm(torch.from_numpy(x)).detach().numpy()

    w1, b1, w2, b2 = (p.detach().numpy() for p in amm.mlp.parameters())
    assert w1.shape == (2, 32)  # a reduction of 16
    kernel = amm.conv.weight.detach().numpy()[0]
    for image, modulated in zip(x, found, strict=True):
        z = w2 @ np.maximum(w1 @ image.mean(axis=(1, 2)) + b1, 0) + b2
        image = image * density(z)[:, None, None]
        padded = np.pad(np.stack([image.max(axis=0), image.mean(axis=0)]), ((0, 0), (3, 3), (3, 3)))
        z = np.array([[(padded[:, i : i + 7, j : j + 7] * kernel).sum() for j in range(6)] for i in range(5)])
        z = 1.5 * (z - z.mean()) / np.sqrt(z.var() + 1e-5) + 0.3
        np.testing.assert_allclose(modulated, image * density(z), rtol=1e-5)


def test_no_gradient_through_mean_and_deviation():
    z = torch.tensor([[-1.0, 0.0, 1.0]], requires_grad=True)
    gaussian_gate(z)[0, 2].backward()
    # d/dz of the density alone: −z·g(z)
    assert z.grad.tolist()[0] == pytest.approx([0, 0, -0.24197], abs=1e-5)


def test_a_blank_image_stays_finite():
    assert torch.isfinite(ActivationModulation(16)(torch.zeros(1, 16, 4, 4))).all()


def small_resnet():
    torch.manual_seed(0)
    options = {"layers": (1, 2, 1, 1), "channels": (4, 8, 12, 16), "num_classes": 0}
    return ResNetStages(timm.create_model("resnet50", zero_init_last=False, **options))


def build(backbones=(small_resnet, small_resnet)):
    return Amr(*(make() for make in backbones), Clip.from_config(TINY), 7)


@pytest.mark.parametrize("make", [small_resnet, lambda: ClipStages(build_random(TINY))])
def test_the_module_sits_behind_the_third_norm(make):
    """With a gate of 1 everywhere, which the density never is, the network would be what it was before."""
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    backbone = make().eval()
    before = backbone.stages(pixels)
    insert_modulation(backbone)
    modules = [module for module in backbone.modules() if isinstance(module, ActivationModulation)]
    assert len(modules) == sum(".layer" in name and name.endswith("conv3") for name, _ in backbone.named_modules())
    assert not torch.allclose(before[-1], backbone.stages(pixels)[-1])
    for module in modules:
        module.forward = lambda x: x
    for level, again in zip(before, backbone.stages(pixels), strict=True):
        torch.testing.assert_close(level, again)


def test_a_resnet_without_bottlenecks_is_refused():
    with pytest.raises(RisError, match="bottlenecks"):
        insert_modulation(ResNetStages(timm.create_model("resnet18", num_classes=0)))


def test_what_learns():
    network = build()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    parts = {name.partition(".")[0] for name in trained}
    assert parts == {"spotlight", "compensation", "spotlight_head", "compensation_head", "lan_project"}
    assert not any(".conv1." in name and ".layer" not in name for name in trained)  # the stems
    assert any(name.startswith("spotlight.resnet.layer1.") for name in trained)
    assert not any(name.startswith("compensation.resnet.layer1.") for name in trained)
    assert any(".amm." in name for name in trained)


def test_statistics_stay_as_loaded():
    network = build().train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.encode_image(torch.randn(2, 3, 64, 64), "compensation")
    assert network.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_an_image_answers_alone_as_in_a_batch():
    network = build()
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    together = network.encode_image(pixels, "compensation")
    assert together.shape == (3, 7, 4, 4)  # stride 16
    torch.testing.assert_close(network.encode_image(pixels[1:2], "compensation"), together[1:2])


def test_logits_are_means_of_maps():
    rng = np.random.default_rng(0)
    V, T = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3))
    cams = np.einsum("bchw,nc->bnhw", V, T)
    logits = classify(torch.from_numpy(V), torch.from_numpy(T)).numpy()
    np.testing.assert_allclose(logits, cams.mean(axis=(2, 3)))
    own = activate(torch.from_numpy(V), torch.from_numpy(T)).numpy()
    np.testing.assert_allclose(own, np.maximum(cams[[0, 1], [0, 1]], 0))
    of_first = activate(torch.from_numpy(V[:1]), torch.from_numpy(T)).numpy()
    np.testing.assert_allclose(of_first, np.maximum(cams[0], 0))


def test_parameters_beside_those_of_table_2():
    """156.87 M there: the networks, a whole CLIP and two heads are 155.75; a layer for texts makes 156.80."""
    with torch.device("meta"):
        branches = [ResNetStages(timm.create_model("resnet50", num_classes=0)) for _ in range(2)]
        clip = Clip.from_config({
            "embed_dim": 1024,
            "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        })  # fmt: skip
        n_image = 1 + sum(parameter.numel() for parameter in clip.model.visual.parameters())  # and logit_scale
        network = Amr(*branches, clip, 1024)
    bottlenecks = {256: 3, 512: 4, 1024: 6, 2048: 3}
    resnet, modules = 23_508_032, sum(n * (2 * C * C // 16 + C // 16 + C + 98 + 2) for C, n in bottlenecks.items())
    assert sum(p.numel() for p in network.compensation.parameters()) == resnet + modules
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    heads = 2 * 2048 * 1024 + 1024 * 1024 + 1024
    assert n_parameters + n_image == 2 * resnet + modules + 102_007_137 + heads
    assert round((n_parameters + n_image) / 1e6, 2) == 156.80
