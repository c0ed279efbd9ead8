"""The field and the walk for CUDA against those for a processor; on CUDA itself: tests/pipeline/test_gpu.py."""

import numpy as np
import pytest
import torch

from ris_pipeline.refine import affinity, instances, walk


@pytest.mark.parametrize("hw", [(24, 31), (7, 3), (2, 6), (1, 1)])
@pytest.mark.parametrize("radius", [5, 10])
def test_the_walk_is_the_processors(hw, radius):
    rng = np.random.default_rng(0)
    maps, boundary = rng.random((3, *hw), np.float32), rng.random(hw, np.float32) ** 4
    settings = {"beta": 4, "n_steps": 32, "radius": radius}
    found = walk.propagate(torch.from_numpy(maps), torch.from_numpy(boundary), **settings)
    np.testing.assert_allclose(found.numpy(), affinity.propagate(maps, boundary, **settings), rtol=1e-4, atol=1e-5)


def test_an_edge_stops_the_walk():
    boundary = torch.zeros(9, 12)
    boundary[:, 6] = 1
    maps = torch.zeros(1, 9, 12)
    maps[:, :, :3] = 1
    walked = walk.propagate(maps, boundary, beta=10, n_steps=64, radius=5)[0]
    assert walked[:, :6].min() > 0.1
    assert walked[:, 7:].abs().max() == 0


def test_the_field_is_followed_as_by_the_processor():
    """Towards two centres, and out of the image at the left."""
    y, x = np.mgrid[:40, :56].astype(np.float32)
    towards = np.where(x < 28, 14, 42)
    displacement = np.stack([(20 - y) * 0.05, (towards - x) * 0.05])
    displacement[1, :, :4] = -9
    ends = walk.follow_displacement(torch.from_numpy(displacement), 100).numpy()
    expected = instances.follow_displacement(displacement, 100)
    assert (ends == expected).mean() > 0.999
    assert set(np.unique(ends[1, :, 28:])) == {42}
    assert (ends[1, :, :4] == 0).all()


def test_labels_are_the_processors():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:40, :56].astype(np.float32)
    displacement = np.stack([(20 - y) * 0.3, (np.where(x < 28, 14, 42) - x) * 0.3])
    maps, boundary = rng.random((2, 150, 220), np.float32), rng.random((40, 56), np.float32) ** 4
    settings = {"beta": 4, "n_steps": 16, "radius": 5}
    expected = instances.compute_pseudolabels(maps, boundary, displacement, (150, 220), threshold=0.5, **settings)
    walked, counts = walk.walk_pieces(maps, torch.from_numpy(boundary), torch.from_numpy(displacement), **settings)
    assert counts == [2, 2]
    found = instances.label_walked(walked, counts, (150, 220), 0.5)
    assert (found == expected).mean() > 0.999
    assert 0.05 < expected.mean() < 0.95
