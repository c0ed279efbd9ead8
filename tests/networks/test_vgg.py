"""VGG-16 against torchvision's own network, and its weights in torchvision's format."""

import pytest
import torch
import torchvision

from ris_pipeline.errors import RisError
from ris_pipeline.networks.vgg import build_vgg, compute_levels


@pytest.mark.parametrize(("name", "n_parameters"), [("vgg16", 14_714_688), ("vgg16_bn", 14_723_136)])
def test_it_is_torchvisions(name, n_parameters):
    with torch.device("meta"):
        own, other = build_vgg(name, 64, None), torchvision.models.get_model(name).features
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    assert sum(parameter.numel() for parameter in own.parameters()) == n_parameters


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_a_file_of_torchvisions_names_is_loaded(name, tmp_path):
    """Narrow, as the whole file is half a gigabyte; the names are torchvision's, classifier included."""
    torch.manual_seed(0)
    source = build_vgg(name, 2, None).eval()
    state = {f"features.{key}": value for key, value in source.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(3, 4)}, tmp_path / f"{name}.pth")
    pixels = torch.randn(1, 3, 32, 32)
    loaded = build_vgg(name, 2, str(tmp_path / f"{name}.pth")).eval()
    assert torch.equal(loaded(pixels), source(pixels))


def test_levels_are_what_the_pools_give():
    features = build_vgg("vgg16_bn", 2, None).eval()
    levels = compute_levels(features, torch.randn(2, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [
        (2, 2, 32, 48), (2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)
    ]  # fmt: skip
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(compute_levels(features, pixels)[-1], features(pixels))
    assert torch.equal(compute_levels(features, pixels)[0], features[:7](pixels))


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(RisError, match=r"nowhere\.pth: neither a file nor weights .* vgg16: IMAGENET1K_V1"):
        build_vgg("vgg16", 2, "nowhere.pth")
    torch.save(build_vgg("vgg16", 2, None).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(RisError, match=r"bare\.pth: not the weights of this network \(missing: 0\.weight"):
        build_vgg("vgg16", 2, str(tmp_path / "bare.pth"))


def test_a_failed_download_says_so(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.VGG16_Weights, "get_state_dict", fail)
    with pytest.raises(RisError, match=r"IMAGENET1K_V1 of vgg16 did not download.*no route.*local file"):
        build_vgg("vgg16", 2, "IMAGENET1K_V1")
