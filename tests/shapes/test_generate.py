"""The generated data set, read back like any other."""

import itertools

import numpy as np
import pytest

from ris_pipeline.datasets import load_card, load_dataset
from ris_pipeline.datasets.check import check_dataset
from ris_pipeline.datasets.io.images import load_image
from ris_pipeline.errors import RisError
from ris_pipeline.shapes.generate import IMAGE_SIZES_HW, Item, draw_item, generate

N_IMAGES = {"train": 3, "val": 2, "testA": 1, "testB": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with a generated set in it, drawn by two processes."""
    folder = tmp_path_factory.mktemp("root")
    generate(folder / "tiny", "shapes", N_IMAGES, seed=3, workers=2)
    return folder


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'name = "tiny"\nformat = "refer"\npartition = "shapes"\n'
        'annotations = "tiny/refer/shapes"\nimages = "tiny/images"\n'
        '[splits]\ntrain = "any"\nval = "any"\ntestA = "any"\ntestB = "any"\n'
    )
    return load_card(str(path))


def read_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_split_is_read_back(root, card):
    assert not check_dataset(card, root).faults
    for split, n_images in N_IMAGES.items():
        dataset = load_dataset(card, root, split)
        assert len(dataset.images) == n_images
        assert all(ref.box_xyxy and ref.has_mask for ref in dataset.refs)
        assert dataset.n_expressions == 3 * len(dataset.refs)
        for ref in dataset.refs:
            assert ref.split == split
            assert len({expression.sentence for expression in ref.expressions}) == 3


def test_pictures_have_the_recorded_size(root, card):
    for split in N_IMAGES:
        for image in load_dataset(card, root, split).images.values():
            assert load_image(image.path).shape == (*image.hw, 3)
            assert image.hw in IMAGE_SIZES_HW


def test_boxes_are_the_tight_boxes_of_masks(root, card):
    for split in N_IMAGES:
        dataset = load_dataset(card, root, split)
        for ref in dataset.refs:
            rows, columns = np.nonzero(dataset.load_mask(ref))
            # In pixels' edges: a mask of one pixel at (0, 0) has the box 0, 0, 1, 1.
            expected = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert ref.box_xyxy == pytest.approx(expected)


def test_masks_of_an_image_are_disjoint_and_not_small(root, card):
    dataset = load_dataset(card, root, "train")
    for ref in dataset.refs:
        mask = dataset.load_mask(ref)
        assert mask.mean() > 0.005
        for other in dataset.siblings(ref):
            assert not (mask & dataset.load_mask(other)).any()


def test_ids_are_unique_over_all_splits(root, card):
    datasets = [load_dataset(card, root, split) for split in N_IMAGES]
    for ids in (
        [image_id for dataset in datasets for image_id in dataset.images],
        [ref.ref_id for dataset in datasets for ref in dataset.refs],
        [e.sent_id for dataset in datasets for ref in dataset.refs for e in ref.expressions],
    ):
        assert len(ids) == len(set(ids))


def test_one_worker_writes_the_same_bytes_as_two(root, tmp_path):
    advanced = []
    generate(tmp_path / "tiny", "shapes", N_IMAGES, seed=3, workers=1, advance=advanced.append)
    assert read_files(tmp_path / "tiny") == read_files(root / "tiny")
    assert advanced == [1] * 7


def test_seed_and_split_give_other_pictures():
    items = [Item(1, split, (seed, k, 0), "shapes") for k, split in enumerate(N_IMAGES) for seed in (0, 1)]
    pictures = [draw_item(item)[0] for item in items]
    for a, b in itertools.combinations(pictures, 2):
        assert a.shape != b.shape or (a != b).any()


def test_sentences_are_of_the_object_whose_mask_is_kept(strict):
    """The mask's centre stands where a sentence of position says."""
    n = 0
    for seed in range(40):
        image, targets = draw_item(Item(1, "train", (seed, 0, 0), "shapes"))
        assert 1 <= len(targets) <= 3
        for target in targets:
            rows, columns = np.nonzero(target.mask)
            y, x = rows.mean() / image.shape[0], columns.mean() / image.shape[1]
            for sentence in target.sentences:
                said = strict.parse(sentence)
                assert said.look["shape"] == target.shape
                for side in said.place:  # what is covered moves the centre a little, hence not 0.4
                    share = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}.get(
                        side, max(abs(x - 0.5), abs(y - 0.5))
                    )
                    assert share < (0.5 if side != "middle" else 0.25)
                    n += 1
    assert n > 40


def test_nothing_is_left_under_its_name_when_it_breaks_off(tmp_path):
    def break_off(n):
        raise KeyboardInterrupt

    folder = tmp_path / "tiny"
    with pytest.raises(KeyboardInterrupt):
        generate(folder, "shapes+", {"val": 2}, seed=0, workers=1, advance=break_off)
    assert not folder.exists()
    generate(folder, "shapes+", {"val": 1}, seed=0, workers=1)  # what was begun is no obstacle
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert len(list((folder / "images").iterdir())) == 1

    before = read_files(folder)
    with pytest.raises(KeyboardInterrupt):
        generate(folder, "shapes+", {"val": 2}, seed=1, workers=1, advance=break_off)
    assert read_files(folder) == before  # nor is what was there lost


def test_unknown_variant_is_an_error(tmp_path):
    with pytest.raises(RisError, match="unknown variant 'shapes-'"):
        generate(tmp_path / "x", "shapes-", {"val": 1}, seed=0, workers=1)
    assert not list(tmp_path.iterdir())
