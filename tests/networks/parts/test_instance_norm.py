"""The gradient of InstanceNorm, in both layouts of memory."""

import pytest
import torch

from ris_pipeline.networks.parts.instance_norm import InstanceNorm2d


@pytest.mark.parametrize("n_images", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_does_not_depend_on_the_layout(n_images, layout):
    torch.manual_seed(0)
    x = torch.randn(n_images, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(n_images, 8, 3, 3, dtype=torch.float64)
    InstanceNorm2d(8, affine=True).double()(x).backward(gradient.contiguous(memory_format=layout))

    values, wanted = x.detach().flatten(2), gradient.flatten(2)
    scale = (values.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
    z = (values - values.mean(-1, keepdim=True)) * scale
    expected = scale * (wanted - wanted.mean(-1, keepdim=True) - z * (wanted * z).mean(-1, keepdim=True))
    torch.testing.assert_close(x.grad.flatten(2), expected)
