"""The throughput of the stages, on networks and images that are small; sizes and rates against sums done by hand."""

import json
import re
import statistics

import pytest
import torch

from ris_pipeline.bench import N_PICTURES, TRAIN_SIZES, Bench, Clock, Shape, find_shape, make_dataset
from ris_pipeline.chain.context import open_context
from ris_pipeline.cost import count_macs
from ris_pipeline.datasets.io.files import load_picture
from ris_pipeline.methods import tris

PARTS = ["step1", "responses", "seeds", "irnet", "walk", "later round", "step2", "scores"]


@pytest.fixture(scope="module")
def places(tmp_path_factory, write_tiny_card, call_ris):
    """Options of the tiny chain with its data set made, six images of train and three of val."""
    root = tmp_path_factory.mktemp("bench")
    card = write_tiny_card(root, train=6, val=3)
    options = {"dataset": card, "data_root": root / "data", "runs": root / "runs", "quiet": True}
    assert call_ris("data", "make-shapes", dataset=card, data_root=root / "data", quiet=True) == 0
    return options


@pytest.fixture(scope="module")
def context(places):
    return open_context(places["dataset"], data_root=places["data_root"], runs=places["runs"], quiet=True)


def test_the_rate_leaves_the_first_mark_out():
    assert Clock([(10.0, 100), (11.0, 3), (14.0, 5)]).rate() == 2.0


def test_refcoco_is_as_large_as_published(tmp_path):
    """Without its files: Yu et al. (ECCV 2016), the UNC split; sentences as the card expects them."""
    shape = find_shape(open_context("refcoco", data_root=tmp_path, runs=tmp_path, quiet=True))
    assert (shape.n_images, shape.n_refs, shape.n_sentences) == (16_994, 42_404, 120_624)
    assert shape.n_others == 10_834 + 5_657 + 5_095
    assert set(TRAIN_SIZES) == {"refcoco", "refcoco+", "refcocog-umd"}


def test_another_data_set_is_as_large_as_its_files(context):
    train, val = context.open_dataset("train"), context.open_dataset("val")
    images = {ref.image_id for ref in train.refs}
    sizes = [load_picture(train.images[image_id].path, "RGB").shape[:2] for image_id in images]
    height, width = (round(statistics.median(sides)) for sides in zip(*sizes, strict=True))
    numbers = len(images), len(train.refs), train.n_expressions, val.n_expressions
    assert find_shape(context) == Shape(*numbers, (height, width))


def test_made_up_data_have_the_shapes_means(tmp_path):
    dataset = make_dataset(tmp_path, Shape(10, 25, 70, 0, (48, 64)), n_images=10)
    assert [len(dataset.refs_of_image[i]) for i in range(10)] == [2, 3] * 5
    assert (len(dataset.refs), dataset.n_expressions) == (25, 70)
    assert dataset.load_mask(dataset.refs[0]).sum() == 24 * 32
    pictures = {image.path.read_bytes() for image in dataset.images.values()}
    assert len(pictures) == N_PICTURES < len(dataset.images)
    half = make_dataset(tmp_path, Shape(10, 25, 70, 0, (48, 64)), n_images=4)
    assert half.refs == dataset.refs[: len(half.refs)]


def test_the_command(places, call_ris, capsys, tmp_path):
    options = {**places, "device": "cpu", "workers": 0}
    assert call_ris("bench", "--steps", 1, "--batch", 4, "--json", **options) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in found["stages"]] == PARTS
    assert found["peak_tflops"].keys() == {"fp32"}
    for row in found["stages"]:
        assert row["per_second"] > 0
        assert row["hours"] == pytest.approx(row["n_units"] / row["per_second"] / 3600)
        assert (row["gflop"] is None) == (row["stage"] == "seeds")
    rows = {row["stage"]: row for row in found["stages"]}
    assert rows["walk"]["n_units"] == rows["later round"]["n_units"] == 6
    assert rows["step1"]["n_units"] == rows["step2"]["n_units"] == found["shape"]["n_refs"]  # one epoch
    assert rows["responses"]["n_units"] == found["shape"]["n_sentences"] + rows["scores"]["n_units"]
    peak = found["peak_tflops"]["fp32"] * 1e3  # GFLOP/s
    assert rows["step1"]["share"] == pytest.approx(rows["step1"]["per_second"] * rows["step1"]["gflop"] / peak)

    words = ("bench", "--steps", 1, "--batch", 2, "--stage", "pseudolabels", "--preset", "best", "--json")
    assert call_ris(*words, **options) == 0
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert list(rows) == [*PARTS[2:6], "pieces"]
    assert rows["pieces"]["n_units"] == found["shape"]["n_refs"]

    for row in found["stages"]:
        row["per_second"] /= 1e6
    (tmp_path / "before.json").write_text(json.dumps(found))
    words = ("bench", "--steps", 1, "--batch", 4, "--stage", "scores", "--against", tmp_path / "before.json")
    assert call_ris(*words, **{name: value for name, value in options.items() if name != "quiet"}) == 0
    table, said = capsys.readouterr()
    assert re.search(r"^scores: [\d.e+]+ sentences a second in fp32, \d+% of the peak$", said, re.MULTILINE)
    assert "step1" not in table.split("against")[0]
    (line,) = [line for line in table.splitlines() if line.startswith("scores")]
    assert float(line.split()[-1]) > 1000


def test_step2s_sentences_are_counted_as_they_are_answered(context, tmp_path):
    """An image once, each sentence once: the products of a responder that is asked by hand."""
    bench = Bench(context, tmp_path, find_shape(context), steps=1, batch=2)
    (found,) = bench.measure("scores")
    responder = tris.Step2Responder(tris.step2_from_config(bench.step2).eval(), 64)
    groups = bench.groups[:2]
    pixels = torch.zeros(2, 3, 64, 64)

    def answer():
        for image, group in zip(responder.encode_images(pixels), groups, strict=True):
            responder.respond(image, torch.cat([responder.encode_texts([text]) for text in group.sentences]))

    with torch.no_grad():
        macs = sum(count_macs(answer).values())
    n = sum(len(group.sentences) for group in groups)
    assert found.gflop == pytest.approx(2 * macs / n / 1e9)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--stage", "step3"], "did you mean 'step2'"),
        (["--set", "batch_size=4"], "name the stage"),
        (["--against", "{folder}/none.json"], "none.json: cannot be read"),
        (["--against", "{folder}/a.json"], "a.json: not a result of ris bench"),
    ],
)
def test_what_cannot_be_measured_is_named(places, call_ris, capsys, tmp_path, words, line):
    (tmp_path / "a.json").write_text("[]")
    assert call_ris("bench", *(word.format(folder=tmp_path) for word in words), **places) in (1, 2)
    assert line in capsys.readouterr().err
