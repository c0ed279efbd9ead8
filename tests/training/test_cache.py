"""The cache of images: the same pixels as from the files, whole or absent, and never another's."""

import numpy as np
import PIL.Image
import pytest
import torch

from ris_pipeline.datasets.io.images import load_image, to_pixels
from ris_pipeline.datasets.records import Dataset, Expression, Image, Ref
from ris_pipeline.errors import RisError
from ris_pipeline.training.batches import RefBatches
from ris_pipeline.training.cache import open_cache
from ris_pipeline.training.draws import Plan

SIZE = 32


@pytest.fixture
def dataset(tmp_path):
    """Three images of other sizes than the cache's, of which the first has no ref."""
    rng = np.random.default_rng(0)
    images = {}
    for i in (5, 7, 9):
        images[i] = Image(i, tmp_path / f"{i}.png", (40 + i, 60))
        PIL.Image.fromarray(rng.integers(0, 256, (40 + i, 60, 3), np.uint8)).save(images[i].path)
    refs = [Ref(k, i, "train", (Expression(k, f"thing {k}"),)) for k, i in enumerate((9, 7, 9))]
    return Dataset("d", "train", images, tuple(refs))


def make(dataset, folder, digest="a", size=SIZE, advance=lambda: None):
    return open_cache(folder, digest, dataset, size, 0, advance)


def test_its_pixels_are_those_of_the_files(dataset, tmp_path):
    done = []
    cache = make(dataset, tmp_path / "cache", advance=lambda: done.append(1))
    assert len(done) == 2
    for image_id in (7, 9):
        assert torch.equal(cache.read(image_id), to_pixels(load_image(dataset.images[image_id]), SIZE))
    plan = Plan(dataset, batch_size=3, refs_per_image=1, n_negatives=0, seed=0)
    plain, cached = (RefBatches(plan, 1, SIZE) for _ in range(2))
    cached.cache = cache
    assert torch.equal(cached[0].pixels, plain[0].pixels)


def test_it_is_made_once(dataset, tmp_path):
    first = make(dataset, tmp_path / "cache")
    for image in dataset.images.values():
        image.path.unlink()
    again = make(dataset, tmp_path / "cache")
    assert torch.equal(again.read(7), first.read(7))


@pytest.mark.parametrize("change", [{"digest": "b"}, {"size": 16}])
def test_other_images_and_another_size_have_another_file(dataset, tmp_path, change):
    assert make(dataset, tmp_path / "cache").path != make(dataset, tmp_path / "cache", **change).path


def test_a_broken_off_one_is_not_taken_and_leaves_nothing(dataset, tmp_path):
    folder = tmp_path / "cache"
    path = make(dataset, folder).path
    path.unlink()
    left = folder / f"{path.name}.0123abcd.new"  # as a killed process leaves it
    left.write_bytes(b"half")
    image = dataset.images[7].path
    pixels = image.read_bytes()
    image.write_bytes(pixels[:100])
    with pytest.raises(RisError, match=r"7\.png"):
        make(dataset, folder)
    assert list(folder.iterdir()) == []
    image.write_bytes(pixels)
    assert torch.equal(make(dataset, folder).read(7), to_pixels(load_image(dataset.images[7]), SIZE))


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_file_is_named(dataset, tmp_path, damage):
    path = make(dataset, tmp_path / "cache").path
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        np.save(path, np.zeros((2, SIZE, SIZE, 4), np.uint8))
    with pytest.raises(RisError, match=rf"{path.name}.*delete it"):
        make(dataset, tmp_path / "cache")
