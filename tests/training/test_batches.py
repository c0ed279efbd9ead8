import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from ris_pipeline.datasets import Annotation, Dataset, Expression, Image, Ref
from ris_pipeline.datasets.io.images import IMAGENET_MEAN, IMAGENET_STD
from ris_pipeline.datasets.io.labels import save_label
from ris_pipeline.errors import RisError
from ris_pipeline.training import batches as batches_module
from ris_pipeline.training.batches import RefBatches, RefLabels, SentenceLabels, TrueMasks
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.readers import read_ahead
from tiny import draw_epoch

LEFT_HALF = {"size": [2, 4], "counts": [0, 4, 4]}  # column by column: two columns of the object, two without


@pytest.fixture
def dataset(tmp_path):
    """Four images of 2×4 pixels, image i of the grey value 10·i, with two refs each."""
    images, refs = {}, []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Picture.fromarray(np.full((2, 4, 3), 10 * i, np.uint8)).save(path)
        images[i] = Image(i, path, (2, 4))
        for r in range(2):
            expression = Expression(len(refs), f"sentence {r} of image {i}")
            refs.append(Ref(100 + len(refs), i, "train", (expression,), (Annotation(None, LEFT_HALF),)))
    return Dataset("tiny", "train", images, tuple(refs))


def plan_of(dataset, batch_size=4, refs_per_image=2):
    return Plan(dataset, batch_size, refs_per_image, n_negatives=1, seed=0)


def grey(pixels):
    """The grey value 0–255 of normalised pixels (3, S, S) of one colour."""
    mean, std = np.array(IMAGENET_MEAN)[:, None, None], np.array(IMAGENET_STD)[:, None, None]
    values = 255 * (pixels.numpy() * std + mean)
    assert np.ptp(values) < 1e-2
    return round(float(values.mean()))


@pytest.mark.parametrize("refs_per_image", [1, 2])
def test_every_ref_has_its_own_image(dataset, refs_per_image):
    for step in range(4):
        batch = RefBatches(plan_of(dataset, refs_per_image=refs_per_image), 2, 6)[step]
        assert batch.pixels.shape[1:] == (3, 6, 6)
        assert batch.targets is None
        assert batch.image_of.dtype == torch.int64
        for draw, row in zip(batch.draws, batch.image_of, strict=True):
            assert grey(batch.pixels[row]) == 10 * dataset.refs[draw.ref].image_id
        assert sorted(set(batch.image_of.tolist())) == list(range(len(batch.pixels)))


def test_an_image_is_read_once_for_its_refs_in_the_batch(dataset, monkeypatch):
    read = []
    load_image = batches_module.load_image
    monkeypatch.setattr(batches_module, "load_image", lambda path: (read.append(path), load_image(path))[1])
    batch = RefBatches(plan_of(dataset), 1, 6)[0]
    assert len(batch.draws) == 4
    assert len(batch.pixels) == len(read) == len(set(read)) == 2


def test_steps_are_those_of_the_plan_from_any_on(dataset):
    """Two steps an epoch: step 3 is the second of epoch 1, wherever the reading begins."""
    plan = plan_of(dataset)
    source = RefBatches(plan, 3, 6)
    assert source.n_steps == 6
    expected = [batch for epoch in range(3) for batch in draw_epoch(plan, epoch)]
    assert [batch.draws for batch in read_ahead(source, range(6), workers=0)] == expected
    assert [batch.draws for batch in read_ahead(source, range(3, 6), workers=0)] == expected[3:]


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_read_the_same(dataset, workers):
    source = RefBatches(plan_of(dataset), 2, 6, TrueMasks())
    here, there = (list(read_ahead(source, range(1, 4), n)) for n in (0, workers))
    for a, b in zip(here, there, strict=True):
        assert a.draws == b.draws
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.image_of, b.image_of)
        assert torch.equal(a.targets, b.targets)


def test_an_outline_holds_all_that_a_reader_needs(dataset):
    """Readers look at nothing but the outline, or in time each would have a copy of all records."""
    source = RefBatches(plan_of(dataset), 1, 6, TrueMasks())
    outline, expected = source.outline(1), source[1]
    assert len(outline[1].refs) == len(expected.draws) < len(dataset.refs)
    empty = replace(dataset, images={}, refs=())
    source.plan = replace(source.plan, dataset=empty)
    read = source.read(outline)
    assert torch.equal(read.pixels, expected.pixels)
    assert torch.equal(read.targets, expected.targets)
    assert torch.equal(read.image_of, expected.image_of)
    assert (read.draws, read.image_ids) == (expected.draws, expected.image_ids)


def test_readers_are_given_outlines(dataset, monkeypatch):
    source = RefBatches(plan_of(dataset), 2, 6)
    made = os.getpid()

    def outline(step):
        assert os.getpid() == made
        return RefBatches.outline(source, step)

    monkeypatch.setattr(source, "outline", outline)
    assert len(list(read_ahead(source, range(3), workers=1))) == 3


def test_the_oracles_labels_are_the_true_masks(dataset):
    batch = RefBatches(plan_of(dataset), 1, 4, TrueMasks())[0]
    assert batch.targets.dtype == torch.uint8
    expected = torch.tensor([[1, 1, 0, 0]] * 4, dtype=torch.uint8)  # 2×4 at 4×4: each row twice
    assert torch.equal(batch.targets, expected.expand(4, 4, 4))


def test_the_oracle_learns_nothing_where_pixels_are_ignored(dataset):
    right_column = {"size": [2, 4], "counts": [6, 2]}
    ref = replace(dataset.refs[0], ignored=right_column)
    label = TrueMasks().load(dataset, ref, ref.expressions[0])
    assert label.tolist() == [[1, 1, 0, 255]] * 2


def test_labels_of_a_folder_are_resized_to_the_nearest_pixel(dataset, tmp_path):
    """The columns 0 1 2 3 of the PNG at 6 pixels: centres 1/3, 1, 5/3, 7/3, 3, 11/3."""
    for k, ref in enumerate(dataset.refs):
        save_label(tmp_path / f"{ref.ref_id}.png", np.array([[0, 255, 1, k % 2], [1, 1, 1, 1]], np.uint8))
    batch = RefBatches(plan_of(dataset), 1, 6, RefLabels(tmp_path))[0]
    for draw, label in zip(batch.draws, batch.targets, strict=True):
        upper, lower = [0, 255, 255, 1, draw.ref % 2, draw.ref % 2], [1] * 6
        assert label.tolist() == [upper, upper, upper, lower, lower, lower]


def test_each_sentence_may_have_a_target_of_its_own(dataset, tmp_path):
    first = dataset.refs[0]
    spoken = (Expression(70, "one"), Expression(71, "two"))
    alone = replace(dataset, refs=(replace(first, expressions=spoken),))
    for sent_id, value in ((70, 1), (71, 0)):
        save_label(tmp_path / f"{sent_id}.png", np.full((2, 4), value, np.uint8))
    batches = RefBatches(plan_of(alone), 20, 6, SentenceLabels(tmp_path))
    seen = {(batches[step].draws[0].sentence, int(batches[step].targets.unique().item())) for step in range(20)}
    assert seen == {("one", 1), ("two", 0)}


def test_mirrored_images_have_mirrored_targets_and_swapped_sentences(dataset):
    """Each image black on its left half, where the object is; in the mirror both are on the right."""
    for image in dataset.images.values():
        halves = np.zeros((2, 4, 3), np.uint8)
        halves[:, 2:] = 200
        Picture.fromarray(halves).save(image.path)
    said = replace(
        dataset, refs=tuple(replace(r, expressions=(Expression(r.ref_id, "left one"),)) for r in dataset.refs)
    )
    seen = set()
    source = RefBatches(replace(plan_of(said), n_negatives=0, mirror=True), 8, 4, TrueMasks())
    for step in range(source.n_steps):
        batch = source[step]
        for draw, row, target in zip(batch.draws, batch.image_of, batch.targets, strict=True):
            is_dark = batch.pixels[row, 0] < 0
            assert torch.equal(target.bool(), is_dark)
            is_left = bool(is_dark[0, 0])
            assert draw.sentence == ("left one" if is_left else "right one")
            seen.add((said.refs[draw.ref].image_id, is_left))
    assert len(seen) == 8  # each image both ways


def test_a_missing_label_is_an_error_that_names_the_file(dataset, tmp_path):
    with pytest.raises(RisError, match=r"10\d\.png: not a pseudo-label"):
        next(read_ahead(RefBatches(plan_of(dataset), 1, 6, RefLabels(tmp_path)), range(1), workers=0))


def test_a_data_set_without_refs_is_an_error():
    plan = plan_of(Dataset("empty", "train", {}, ()))
    with pytest.raises(RisError, match="empty has no refs in split 'train'"):
        RefBatches(plan, 1, 6)
