import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn

from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets import Dataset, Expression, Image, Ref
from ris_pipeline.datasets.io.images import normalise
from ris_pipeline.datasets.io.labels import load_label, save_label
from ris_pipeline.datasets.records import group_by_image
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import RESPONSE, SEGMENTATION
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.networks.irnet import IRNet
from ris_pipeline.networks.parts.stages import StageBackbone
from ris_pipeline.refine.crf import clean_labels
from ris_pipeline.refine.pseudolabels import (
    TEMPERATURE,
    _find_boundaries,
    combine_maps,
    compute_mean_maps,
    compute_selected_maps,
    compute_weighted_maps,
    save_refined,
    save_seeds,
    save_segmented,
    save_thresholded,
)
from ris_pipeline.training.irnet import SeedFile, train_irnet

CPU = torch.device("cpu")
# At input size 4 = image size = grid size, a map is its grid: negative scores to 0, divided by the maximum.
GRIDS = np.array(
    [
        # ref 0 on image 0
        [[8, 4, 2, -1], [4, 2, 0, -1], [0, 0, 0, 0], [-8, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 10, 0], [0, 0, 0, 0]],
        # ref 1 on image 1
        [[-1, -2, -3, -4]] * 4,
        # ref 2 on image 0
        [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 3], [0, 0, 0, 4]],
    ],
    np.float32,
)


class TinyStages(StageBackbone):
    """Five average poolings with a 1×1 convolution each."""

    stage_channels = (4, 4, 4, 4, 4)
    stage_strides = (4, 4, 8, 16, 16)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(5))

    def stages(self, pixels):
        return [
            layer(nn.functional.avg_pool2d(pixels, stride, ceil_mode=True))
            for layer, stride in zip(self.layers, self.stage_strides, strict=True)
        ]


def dataset_of(folder, hw, known_hw=True):
    """Two images; refs 0 (two sentences) and 2 on the first, ref 1 on the second."""
    rng = np.random.default_rng(0)
    images, refs = {}, []
    for i in range(2):
        picture = rng.integers(0, 60, (*hw, 3), dtype=np.uint8)
        picture[: hw[0] // 2, : hw[1] // 2] += 180
        Picture.fromarray(picture).save(folder / f"{i}.png")
        images[i] = Image(i, folder / f"{i}.png", hw if known_hw else None)
    for ref_id, image_id, sentences in ((0, 0, "ab"), (1, 1, "c"), (2, 0, "d")):
        expressions = tuple(Expression(10 * ref_id + k, text) for k, text in enumerate(sentences))
        refs.append(Ref(ref_id, image_id, "train", expressions))
    return Dataset("tiny", "train", images, tuple(refs))


def store_of(folder, dataset, grids, scores=(0.1, 0.9, 0.5, 0.5), input_size=4, rule=RESPONSE):
    """Responses of four sentences, the second of ref 0 selected; scores None: without PRMS."""
    store = ResponseStore.create(
        folder / "train.zarr", sent_id=[0, 1, 20, 10], ref_id=[0, 0, 2, 1], image_hw=[(4, 4)] * 4,
        grid_hw=grids.shape[1:], rule=rule, input_size=input_size, attributes={},
    )  # fmt: skip
    store.write_block(0, grids[[0, 1, 3, 2]], None if scores is None else np.array(scores, np.float32))
    if scores is not None:
        store.select_maps()
    return store


@pytest.fixture
def labels(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    return folder


def read(folder):
    return {path.name: load_label(path).tolist() for path in folder.iterdir()}


def test_selected_maps_of_logits_are_probabilities(tmp_path):
    dataset = dataset_of(tmp_path, (4, 4))
    grids = np.full((4, 4, 4), -2.0, np.float32)
    grids[1, :2] = np.log(3)  # of the selected sentence: odds of three to one
    store = store_of(tmp_path, dataset, grids, rule=SEGMENTATION)
    maps = compute_selected_maps(store, dataset.refs[:1], (4, 4))
    np.testing.assert_allclose(maps[0, :2], 0.75, atol=1e-6)
    np.testing.assert_allclose(maps[0, 2:], 1 / (1 + np.e**2), atol=1e-6)


def test_boundaries_of_images_of_one_size_are_found_together(tmp_path):
    """What comes back is each image's own, whatever it was seen with; refs that are done have no image."""
    torch.manual_seed(0)
    net = IRNet(TinyStages()).eval()
    rng = np.random.default_rng(0)
    sizes = [(16, 24), (24, 16), (16, 24), None, (16, 24), (24, 16)]
    read = [(k, [k], None if hw is None else rng.integers(0, 256, (*hw, 3), np.uint8)) for k, hw in enumerate(sizes)]
    together = []
    see = net.boundary_displacement
    net.boundary_displacement = lambda pixels: (together.append(tuple(pixels.shape)), see(pixels))[1]
    found = {k: (refs, image, fields) for k, refs, image, fields in _find_boundaries(net, iter(read), 4)}
    # Four at once, done ones among them: two of one size and one of the other, then one and one.
    assert sorted(together) == [(1, 3, 16, 24), (1, 3, 24, 16), (1, 3, 24, 16), (2, 3, 16, 24)]
    assert found.keys() == set(range(6))
    assert found[3] == ([3], None, None)
    for k, refs, image in read:
        if image is not None:
            boundary, displacement = see(normalise(image)[None])
            assert found[k][0] == refs
            assert found[k][1] is image
            torch.testing.assert_close(found[k][2], (boundary[0, 0], displacement[0]))


def test_selected_maps(tmp_path):
    dataset = dataset_of(tmp_path, (4, 4))
    store = store_of(tmp_path, dataset, GRIDS)
    maps = compute_selected_maps(store, group_by_image(dataset)[0].refs, (4, 4))
    np.testing.assert_allclose(maps[0], GRIDS[1] / 10, atol=1e-5)
    np.testing.assert_allclose(maps[1], GRIDS[3] / 4, atol=1e-5)


def test_without_prms_the_first_sentence_counts(tmp_path):
    dataset = dataset_of(tmp_path, (4, 4))
    store = store_of(tmp_path, dataset, GRIDS, scores=None)
    maps = compute_selected_maps(store, dataset.refs[:1], (4, 4))
    np.testing.assert_allclose(maps[0], np.maximum(GRIDS[0], 0) / 8, atol=1e-5)


def test_the_mean_over_a_refs_sentences(tmp_path):
    """Of the first ref the maps are GRIDS[0] / 8 and GRIDS[1] / 10, both without their negative scores."""
    dataset = dataset_of(tmp_path, (4, 4))
    store = store_of(tmp_path, dataset, GRIDS, scores=None)
    maps = compute_mean_maps(store, group_by_image(dataset)[0].refs, (4, 4))
    mean = (np.maximum(GRIDS[0], 0) / 8 + GRIDS[1] / 10) / 2
    assert mean.max() == 0.5  # twice
    np.testing.assert_allclose(maps[0], mean / 0.5, atol=1e-5)
    np.testing.assert_allclose(maps[1], GRIDS[3] / 4, atol=1e-5)  # a single sentence
    assert not compute_mean_maps(store, group_by_image(dataset)[1].refs, (4, 4)).any()


def test_the_mean_weighted_by_prms(tmp_path):
    """Scores are sums over two sentences; their means differ by TEMPERATURE·ln 3, so that the second counts thrice."""
    dataset = dataset_of(tmp_path, (4, 4))
    store = store_of(tmp_path, dataset, GRIDS, scores=(0.1, 0.1 + 2 * TEMPERATURE * np.log(3), 0.5, 0.5))
    maps = compute_weighted_maps(store, group_by_image(dataset)[0].refs, (4, 4))
    mean = (np.maximum(GRIDS[0], 0) / 8 + 3 * GRIDS[1] / 10) / 4
    np.testing.assert_allclose(maps[0], mean / mean.max(), atol=1e-5)
    np.testing.assert_allclose(maps[1], GRIDS[3] / 4, atol=1e-5)


def test_without_prms_nothing_is_weighted_by_it(tmp_path):
    dataset = dataset_of(tmp_path, (4, 4))
    store = store_of(tmp_path, dataset, GRIDS, scores=None)
    with pytest.raises(RisError, match="prms=true"):
        compute_weighted_maps(store, dataset.refs[:1], (4, 4))


def test_refs_of_one_image_compete_also_with_those_that_have_their_label(tmp_path):
    """Two maps that overlap in one pixel: there ref 0 responds half as much as at most, ref 2 a quarter."""
    dataset = dataset_of(tmp_path, (4, 4))
    grids = np.zeros((4, 4, 4), np.float32)
    grids[:2, 0, :3] = 8, 8, 4
    grids[3, 0, 2:] = 5, 20
    store = store_of(tmp_path, dataset, grids)
    group, config = group_by_image(dataset)[0], PseudolabelConfig(compete=True)
    first, second = combine_maps(store, group, group.refs, (4, 4), config)[:, 0]
    np.testing.assert_allclose(first, [1, 1, 0.5, 0], atol=1e-5)
    np.testing.assert_allclose(second, [0, 0, 0, 1], atol=1e-5)
    (alone,) = combine_maps(store, group, group.refs[1:], (4, 4), config)
    np.testing.assert_array_equal(alone[0], second)
    of_prms = combine_maps(store, group, group.refs, (4, 4), PseudolabelConfig())
    np.testing.assert_array_equal(of_prms, compute_selected_maps(store, group.refs, (4, 4)))
    of_mean = combine_maps(store, group, group.refs, (4, 4), PseudolabelConfig(combine="mean"))
    np.testing.assert_array_equal(of_mean, compute_mean_maps(store, group.refs, (4, 4)))


@pytest.mark.parametrize("known_hw", [True, False])
def test_thresholded_labels(tmp_path, labels, known_hw):
    dataset = dataset_of(tmp_path, (4, 4), known_hw)
    store = store_of(tmp_path, dataset, GRIDS)
    done = []
    save_thresholded(
        dataset, store, group_by_image(dataset), labels, PseudolabelConfig(threshold=0.55), None, None, done.append
    )
    assert read(labels) == {
        "0.png": [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
        "1.png": [[0, 0, 0, 0]] * 4,  # nowhere a positive score
        "2.png": [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]],
    }
    assert done == [2, 1]


def test_any_response_is_foreground_by_default(tmp_path, labels):
    """TRIS: every positive response."""
    dataset = dataset_of(tmp_path, (4, 4))
    store = store_of(tmp_path, dataset, GRIDS)
    save_thresholded(dataset, store, group_by_image(dataset), labels, PseudolabelConfig(), None, None, lambda n: None)
    assert np.array_equal(load_label(labels / "0.png"), (GRIDS[1] > 0))
    assert np.array_equal(load_label(labels / "2.png"), (GRIDS[3] > 0))


def test_labels_have_the_images_size(tmp_path, labels):
    dataset = dataset_of(tmp_path, (6, 10))
    store = store_of(tmp_path, dataset, GRIDS)
    save_thresholded(
        dataset, store, group_by_image(dataset), labels, PseudolabelConfig(threshold=0.5), None, None, lambda n: None
    )
    assert load_label(labels / "0.png").shape == (6, 10)


def tiny_irnet():
    torch.manual_seed(0)
    return IRNet(TinyStages())


def run(kind, dataset, store, folder, workers=0, advance=lambda n: None):
    """Write the labels of one kind."""
    groups, config = group_by_image(dataset), PseudolabelConfig(threshold=0.5, log2_steps=2)
    if kind == "thresholded":
        save_thresholded(dataset, store, groups, folder, config, None, None, advance)
    elif kind == "seeds":
        save_seeds(dataset, store, groups, folder, config, workers, advance)
    else:
        save_refined(dataset, store, groups, folder, tiny_irnet(), config, None, CPU, workers, advance)


@pytest.fixture
def large(tmp_path):
    """A data set of 32×48 pixels and its responses: blobs of 8×8 cells."""
    dataset = dataset_of(tmp_path, (32, 48))
    y, x = np.mgrid[:8, :8]
    grids = [6 - 2 * np.hypot(y - cy, x - cx) for cy, cx in ((2, 2), (2, 2), (0, 20), (5, 5))]
    return dataset, store_of(tmp_path, dataset, np.array(grids, np.float32), input_size=32)


@pytest.mark.parametrize("kind", ["thresholded", "seeds", "refined"])
def test_labels_that_are_there_are_left_alone(kind, large, labels):
    full = np.full((32, 48), 255, np.uint8)
    save_label(labels / "0.png", full)
    before = (labels / "0.png").stat().st_mtime_ns
    done = []
    run(kind, *large, labels, advance=done.append)
    assert sorted(path.name for path in labels.iterdir()) == ["0.png", "1.png", "2.png"]
    assert (load_label(labels / "0.png") == 255).all()
    assert (labels / "0.png").stat().st_mtime_ns == before
    assert done == [2, 1]

    stamps = {path.name: path.stat().st_mtime_ns for path in labels.iterdir()}
    run(kind, *large, labels)
    assert {path.name: path.stat().st_mtime_ns for path in labels.iterdir()} == stamps


@pytest.mark.parametrize("kind", ["thresholded", "seeds", "refined"])
def test_what_a_broken_run_left_out_is_made_the_same(kind, large, labels, tmp_path):
    run(kind, *large, labels)
    expected = read(labels)
    broken = tmp_path / "broken"
    broken.mkdir()
    run(kind, *large, broken)
    (broken / "2.png").unlink()  # the other ref of its image is there
    run(kind, *large, broken)
    assert read(broken) == expected


def test_seeds_are_of_the_things_that_the_selected_maps_show(large, labels):
    dataset, store = large
    picture = Picture.new("RGB", (48, 32), "gray")  # with a thing where each of the first image's maps has its peak
    picture.paste("red", (6, 3, 24, 16))
    picture.paste("blue", (25, 16, 43, 29))
    picture.save(dataset.images[0].path)
    run("seeds", dataset, store, labels)
    red, blue = (10, 15), (22, 33)
    for ref_id, own, other in ((0, red, blue), (2, blue, red)):
        label = load_label(labels / f"{ref_id}.png")
        assert (label[own], label[other]) == (1, 0)
    assert not load_label(labels / "1.png").any()  # no response: background everywhere


def test_refined_labels_are_masks_around_the_response(large, labels):
    dataset, store = large
    run("refined", dataset, store, labels)
    for ref_id, inside, outside in ((0, (10, 15), (28, 42)), (2, (22, 33), (4, 6))):
        label = load_label(labels / f"{ref_id}.png")
        assert label.shape == (32, 48)
        assert set(np.unique(label)) == {0, 1}
        assert label[inside] == 1
        assert label[outside] == 0
    assert not load_label(labels / "1.png").any()  # no response, no object


def test_refined_labels_are_cleaned_by_the_crf(large, tmp_path):
    """One thing on a plain ground: the walk leaves its edges, the CRF comes nearer."""
    dataset, store = large
    picture = Picture.new("RGB", (48, 32), "gray")
    picture.paste("red", (0, 0, 24, 16))
    picture.save(dataset.images[0].path)
    truth = np.zeros((32, 48), bool)
    truth[:16, :24] = True
    found = {}
    for crf in (False, True):
        folder = tmp_path / str(crf)
        folder.mkdir()
        config = PseudolabelConfig(log2_steps=2, crf=crf)
        save_refined(
            dataset, store, group_by_image(dataset), folder, tiny_irnet(), config, None, CPU, 0, lambda n: None
        )
        found[crf] = load_label(folder / "0.png")
    np.testing.assert_array_equal(found[True], clean_labels(np.asarray(picture), found[False][None])[0])
    plain, cleaned = ((label & truth).sum() / (label | truth).sum() for label in (found[False], found[True]))
    assert cleaned > plain


def test_the_configured_walk_radius_counts(large, labels, tmp_path):
    """A walk of one step goes no further than the radius, in grid cells of 4 pixels."""
    dataset, store = large
    sizes = {}
    for radius in (2, 4, 9):
        folder = tmp_path / str(radius)
        folder.mkdir()
        config = PseudolabelConfig(walk_radius=radius, log2_steps=0, background=0.01)
        net = IRNet(TinyStages())
        with torch.no_grad():  # no boundary anywhere, and no displacement: one instance
            net.fc_edge6.weight.zero_()
            net.fc_edge6.bias.fill_(-20)
            net.fc_dp7[-1].weight.zero_()
        save_refined(dataset, store, group_by_image(dataset), folder, net, config, None, CPU, 0, lambda n: None)
        sizes[radius] = int((load_label(folder / "2.png") == 1).sum())
    assert sizes[2] < sizes[4] < sizes[9]


@pytest.mark.slow  # a process that imports torch
@pytest.mark.parametrize("kind", ["seeds", "refined"])
def test_worker_processes_write_the_same(kind, large, labels, tmp_path):
    run(kind, *large, labels)
    there = tmp_path / "there"
    there.mkdir()
    run(kind, *large, there, workers=1)
    assert read(there) == read(labels)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # of two processors
def test_images_that_answer_nothing_and_more_workers_than_images(tmp_path, labels):
    """No pixel has a seed of the object: IRNet learns from background alone, and every label is empty."""
    dataset = dataset_of(tmp_path, (32, 48))
    store = store_of(tmp_path, dataset, np.zeros((4, 8, 8), np.float32), input_size=32)
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    run("seeds", dataset, store, seeds, workers=3)
    assert not any((load_label(path) == 1).any() for path in seeds.iterdir())
    net = tiny_irnet()
    files = [SeedFile(dataset.images[i].path, seeds / f"{i}.png") for i in (0, 1)]
    config = PseudolabelConfig(irn_epochs=1, irn_batch=8, irn_crop=32, radius=3, log2_steps=2)
    losses = []
    train_irnet(
        net, files, config, folder=tmp_path, seed=0, device=CPU, workers=3,
        report=lambda step, terms: losses.append(terms["loss"]),
    )  # fmt: skip
    assert np.isfinite(losses).all()
    save_refined(dataset, store, group_by_image(dataset), labels, net, config, None, CPU, 3, lambda n: None)
    assert {name: np.unique(label).tolist() for name, label in read(labels).items()} == {
        f"{ref_id}.png": [0] for ref_id in (0, 1, 2)
    }


@pytest.mark.slow
def test_an_error_in_a_worker_process_is_raised(large, tmp_path):
    with pytest.raises(FileNotFoundError):
        run("seeds", *large, tmp_path / "missing", workers=1)


# a and b are of ref 0, d is of ref 2 on the same image: a row of pixels each; c, of ref 1, sees the left half only.
ANSWERS = {
    ord("a"): torch.tensor([0.8, 0.8, 0.2, 0.1])[:, None].expand(4, 4),
    ord("b"): torch.tensor([0.4, 0.8, 0.2, 0.1])[:, None].expand(4, 4),
    ord("c"): torch.tensor([0.9, 0.9, 0.01, 0.01]).expand(4, 4),
    ord("d"): torch.tensor([0.05, 0.2, 0.25, 0.2])[:, None].expand(4, 4),
}


class Answers:
    """The same probabilities for a sentence about whatever image."""

    input_size, grid_hw, rule, device, n_tokens, latin_only = 4, (4, 4), SEGMENTATION, CPU, 9, False

    def find_cut(self, sentences):
        return []

    def encode_images(self, pixels):
        return list(pixels)

    def encode_texts(self, sentences):
        return torch.tensor([[ord(sentence)] for sentence in sentences])

    def respond(self, image, texts, ref_ids=None):
        return torch.stack([torch.logit(ANSWERS[int(text)]) for (text,) in texts])


@pytest.mark.parametrize(("compete", "of_ref_2"), [(False, [0, 1, 1, 1]), (True, [0, 0, 1, 1])])
def test_labels_of_a_later_round_are_relative_means_of_both_looks(tmp_path, labels, compete, of_ref_2):
    """Rows of ref 0 relative to their maximum: 0.75 1 0.25 0.125, of ref 2: 0.2 0.8 1 0.8. None of ref 2 is above ½."""
    dataset = dataset_of(tmp_path, (4, 4))
    config = PseudolabelConfig(compete=compete)
    save_segmented(dataset, Answers(), group_by_image(dataset), labels, config, 0, lambda n: None)
    found = read(labels)
    assert [row[0] for row in found["0.png"]] == [1, 1, 0, 0]
    assert [row[0] for row in found["2.png"]] == of_ref_2
    assert found["1.png"] == [[1] * 4] * 4  # the left half, and in the mirror the other one

    save_label(labels / "2.png", np.zeros((4, 4), np.uint8))  # whole: it stays, and the missing one is made again
    (labels / "0.png").unlink()
    save_segmented(dataset, Answers(), group_by_image(dataset), labels, config, 0, lambda n: None)
    assert read(labels) == {**found, "2.png": [[0] * 4] * 4}
