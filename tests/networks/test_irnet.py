import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.networks.parts.stages import ClipStages, ResNetStages, StageBackbone
from ris_pipeline.refine.affinity import PathIndex
from ris_pipeline.training.irnet_losses import compute_irnet_losses, labels_on_grid


class TinyStages(StageBackbone):
    """Five average poolings with a 1×1 convolution and a BatchNorm each."""

    stage_channels = (5, 6, 7, 8, 9)
    stage_strides = (4, 4, 8, 16, 16)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels)) for channels in self.stage_channels
        )

    def stages(self, pixels):
        return [
            layer(nn.functional.avg_pool2d(pixels, stride, ceil_mode=True))
            for layer, stride in zip(self.layers, self.stage_strides, strict=True)
        ]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return IRNet(TinyStages()).eval()


def small_timm_resnet():
    return timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, (1, 1, 1, 1), channels=(8, 12, 16, 20))


def small_clip_resnet():
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    text = {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    return Clip.from_config({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})


@pytest.mark.parametrize("hw", [(64, 96), (50, 37)])
@pytest.mark.parametrize(
    ("stages", "channels"),
    [
        (lambda: ResNetStages(small_timm_resnet()), (64, 32, 48, 64, 80)),
        (lambda: ClipStages(small_clip_resnet()), (8, 32, 64, 128, 256)),
    ],
)
def test_stages_have_the_channels_and_strides_they_declare(stages, channels, hw):
    backbone = stages().eval()
    assert backbone.stage_channels == channels
    with torch.no_grad():
        maps = backbone.stages(torch.zeros(1, 3, *hw))
    expected = [
        (1, c, math.ceil(hw[0] / s), math.ceil(hw[1] / s))
        for c, s in zip(channels, backbone.stage_strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in maps] == expected


def test_clip_stages_are_open_clips_intermediates():
    torch.manual_seed(1)
    clip = small_clip_resnet().eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = ClipStages(clip).stages(pixels)
        expected = clip.model.visual.forward_intermediates(pixels, intermediates_only=True)["image_intermediates"]
    for feature, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(feature, reference)


@pytest.mark.parametrize("hw", [(32, 48), (33, 51)])
def test_outputs_have_stride_4(net, hw):
    edge, displacement = net.boundary_displacement(torch.randn(2, 3, *hw))
    h, w = math.ceil(hw[0] / 4), math.ceil(hw[1] / 4)
    assert edge.shape == (2, 1, h, w)
    assert displacement.shape == (2, 2, h, w)
    assert edge.min() >= 0
    assert edge.max() <= 1
    assert not edge.requires_grad


def test_boundaries_are_mirror_symmetric_and_displacements_centred(net):
    pixels = torch.randn(1, 3, 32, 48)
    edge, displacement = net.boundary_displacement(pixels)
    mirrored_edge, _ = net.boundary_displacement(pixels.flip(-1))
    torch.testing.assert_close(mirrored_edge, edge.flip(-1))
    net.mean_shift.running_mean.copy_(torch.tensor([0.5, -2.0]))
    _, centred = net.boundary_displacement(pixels)
    torch.testing.assert_close(displacement - centred, torch.tensor([0.5, -2.0])[:, None, None].expand(2, 8, 12)[None])


def test_only_the_heads_learn_and_statistics_stay(net):
    net.train()
    edge_logits, displacement = net(torch.randn(2, 3, 32, 32))
    (edge_logits.sum() + displacement.sum()).backward()
    learning = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    heads = {f"fc_edge{i}" for i in range(1, 7)} | {f"fc_dp{i}" for i in range(1, 8)}
    assert learning == heads
    assert len(net.boundary_parameters()) == 5 * 3 + 2
    assert len(net.displacement_parameters()) == 7 * 3 + 1
    assert not any(name.endswith("num_batches_tracked") and value != 0 for name, value in net.named_buffers())


def test_heads_are_named_and_sized_as_released():
    with torch.device("meta"):
        state = IRNet(ResNetStages(timm.create_model("resnet50"))).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if not name.startswith("backbone.")}
    assert shapes["fc_edge5.0.weight"] == (32, 2048, 1, 1)
    assert shapes["fc_edge5.1.bias"] == (32,)
    assert shapes["fc_edge6.weight"] == (1, 160, 1, 1)
    assert shapes["fc_edge6.bias"] == (1,)
    assert shapes["fc_dp1.0.weight"] == (64, 64, 1, 1)
    assert shapes["fc_dp6.0.weight"] == (256, 768, 1, 1)
    assert shapes["fc_dp7.0.weight"] == (256, 448, 1, 1)
    assert shapes["fc_dp7.3.weight"] == (2, 256, 1, 1)
    assert shapes["mean_shift.running_mean"] == (2,)
    # edges: 5 branches of 3 and 2; displacements: 7 branches of 3 and 1; the mean
    assert len(shapes) == 17 + 22 + 1


def losses_by_hand(edge_logits, displacement, labels, radius):
    """The four losses of float64 arrays (B, h, w), (B, 2, h, w), (B, h, w), over all pairs one at a time."""
    sums = {"bg": [0.0, 0.0, 0], "fg": [0.0, 0.0, 0], "different": [0.0, 0.0, 0]}
    n_images, height, width = labels.shape
    edge = 1 / (1 + np.exp(-edge_logits))
    pixels = [(y, x) for y in range(height) for x in range(width)]
    for b in range(n_images):
        for i, (y0, x0) in enumerate(pixels):
            for y1, x1 in pixels[i + 1 :]:
                dy, dx = y1 - y0, x1 - x0
                first, other = labels[b, y0, x0], labels[b, y1, x1]
                if dy**2 + dx**2 >= radius**2 or 255 in (first, other):
                    continue
                affinity = 1 - max(
                    edge[b, y, x]
                    for y in range(min(y0, y1), max(y0, y1) + 1)
                    for x in range(min(x0, x1), max(x0, x1) + 1)
                    if (dy * (x - x0) - dx * (y - y0)) ** 2 < dy**2 + dx**2
                )
                apart = displacement[b, :, y0, x0] - displacement[b, :, y1, x1]
                if first != other:
                    kind, affinity_loss, displacement_loss = "different", -np.log(1 + 1e-5 - affinity), 0.0
                elif first == 0:
                    kind, affinity_loss, displacement_loss = "bg", -np.log(affinity + 1e-5), abs(apart).mean()
                else:
                    kind, affinity_loss = "fg", -np.log(affinity + 1e-5)
                    displacement_loss = abs(apart - (dy, dx)).mean()
                sums[kind][0] += affinity_loss
                sums[kind][1] += displacement_loss
                sums[kind][2] += 1
    mean = {kind: (a / max(n, 1), d / max(n, 1)) for kind, (a, d, n) in sums.items()}
    alike = (mean["bg"][0] + mean["fg"][0]) / 2
    return alike, mean["different"][0], mean["fg"][1], mean["bg"][1]


def loss_case(seed, n_images=2, hw=(8, 8)):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 0, 1, 255], size=(n_images, *hw)).astype(np.uint8)
    return rng.normal(0, 2, (n_images, *hw)), rng.normal(0, 3, (n_images, 2, *hw)), labels


@pytest.mark.parametrize("radius", [4, 10])
def test_losses_equal_all_pairs_by_hand(radius):
    edge_logits, displacement, labels = loss_case(0)
    losses = compute_irnet_losses(
        torch.from_numpy(edge_logits)[:, None],
        torch.from_numpy(displacement),
        torch.from_numpy(labels),
        PathIndex(radius),
    )
    expected = losses_by_hand(edge_logits, displacement, labels, radius)
    np.testing.assert_allclose([term.item() for term in losses], expected, rtol=1e-4)
    assert losses.total.item() == pytest.approx(
        (expected[0] + expected[1]) / 2 + (expected[2] + expected[3]) / 2, rel=1e-4
    )


def test_gradient_equals_finite_differences():
    edge_logits, displacement, labels = loss_case(1, n_images=1, hw=(4, 5))
    edge = torch.from_numpy(edge_logits)[:, None].float().requires_grad_()
    field = torch.from_numpy(displacement).float().requires_grad_()
    compute_irnet_losses(edge, field, torch.from_numpy(labels), PathIndex(4)).total.backward()

    def total(edge_logits, displacement):
        return sum(losses_by_hand(edge_logits, displacement, labels, 4)) / 2

    step = 1e-5
    for pixel in np.ndindex(edge_logits.shape):
        shift = np.zeros_like(edge_logits)
        shift[pixel] = step
        slope = (total(edge_logits + shift, displacement) - total(edge_logits - shift, displacement)) / (2 * step)
        assert edge.grad[:, 0][pixel].item() == pytest.approx(slope, abs=2e-4)
    for position in [(0, 0, 1, 1), (0, 1, 2, 3), (0, 0, 3, 0)]:
        shift = np.zeros_like(displacement)
        shift[position] = step
        slope = (total(edge_logits, displacement + shift) - total(edge_logits, displacement - shift)) / (2 * step)
        assert field.grad[position].item() == pytest.approx(slope, abs=2e-4)


def test_a_true_field_and_true_boundaries_cost_little():
    # A foreground block whose displacements point to its centre; background displacement 0; boundary on its
    # rim.
    y, x = np.indices((8, 8))
    inside = (y >= 3) & (x >= 3)
    rim = ((y == 2) & (x >= 2)) | ((x == 2) & (y >= 2))
    labels = np.where(rim, 255, inside).astype(np.uint8)
    displacement = np.stack([np.where(inside, 5 - y, 0), np.where(inside, 5 - x, 0)])
    losses = compute_irnet_losses(
        torch.from_numpy(np.where(rim, 20.0, -20.0))[None, None],
        torch.from_numpy(displacement)[None],
        torch.from_numpy(labels)[None],
        PathIndex(4),
    )
    assert losses.different.item() == pytest.approx(0, abs=2e-5)
    assert losses.foreground_displacement.item() == 0
    assert losses.background_displacement.item() == 0


def test_nothing_to_learn_from_costs_nothing():
    ignored = torch.full((1, 6, 6), 255, dtype=torch.uint8)
    losses = compute_irnet_losses(torch.randn(1, 1, 6, 6), torch.randn(1, 2, 6, 6), ignored, PathIndex(5))
    assert losses.total.item() == 0


def test_labels_on_grid_take_the_pixel_at_the_centre():
    labels = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    assert labels_on_grid(labels, (2, 2)).tolist() == [[[18, 22], [50, 54]]]
