"""Prediction from the artifacts alone: there is no data set here, only its card."""

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask

from calls import Options, call
from ris_pipeline import predict as library
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.errors import RisError
from ris_pipeline.predict import Prediction
from stages import predict

LEFT = np.array([[True, False], [True, False]])


class FakeSegmenter:
    """Finds the left half for any sentence but "nothing"; a sentence of more than three words is too long for it."""

    loaded: list[Path]

    def describe_unread(self, sentences):
        return [f"too long: {sentence}" for sentence in sentences if len(sentence.split()) > 3]

    @classmethod
    def load(cls, path, device):
        cls.loaded.append(path)
        return cls()

    def segment_batches(self, batches, sentences):
        for image in (image for batch in batches for image in batch):
            assert image.shape == (2, 2, 3)
            masks = [LEFT & (sentence != "nothing") for sentence in sentences]
            yield [Prediction(mask.astype(np.float32) * 0.75, mask) for mask in masks]


@pytest.fixture
def options(tmp_path: Path, monkeypatch) -> Options:
    monkeypatch.setattr(library, "Segmenter", FakeSegmenter)
    FakeSegmenter.loaded = []
    card = 'name = "tiny"\nformat = "pairs"\nannotations = "no"\nimages = "no"\n[splits]\ntrain = 1\n'
    (tmp_path / "tiny.toml").write_text(card)
    return Options(dataset=str(tmp_path / "tiny.toml"), runs=tmp_path / "runs", device="cpu")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(np.full((2, 2, 3), 100, np.uint8)).save(path)
    return path


def run(options: Options, arguments: list[str], out: Path, **own: object) -> None:
    call(predict.run, options, arguments=arguments, out=out, **own)


def make(options: Options, stage: str, **flags: str) -> Path:
    request = Request(options.runs, "tiny", stage, {}, {}, flags)
    with publish(request):
        pass
    return request.path


def read(path: str) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        return np.array(picture)


def test_three_pictures_for_each_sentence(options, image, tmp_path, capsys):
    make(options, "step1")
    step2 = make(options, "step2", labels="pseudo")
    make(options, "step2", labels="true")
    run(options, [str(image), "a dog", "nothing"], tmp_path / "a" / "out")
    output = capsys.readouterr()
    assert FakeSegmenter.loaded == [step2.resolve()]
    *paths, records = output.out.splitlines()
    assert Path(records) == tmp_path / "a" / "out" / "predictions.json"
    kinds = ["mask", "overlay", "map"]
    assert [Path(path).name for path in paths] == [f"photo-{k}-{kind}.png" for k in (1, 2) for kind in kinds]
    np.testing.assert_array_equal(read(paths[0]), [[255, 0], [255, 0]])
    overlay = read(paths[1])
    # Half of 100 and half of (255, 40, 40); the right half stays.
    assert overlay[0].tolist() == [[178, 70, 70], [100, 100, 100]]
    assert read(paths[2]).shape == (2, 2, 3)
    assert not read(paths[3]).any()
    assert '"nothing": nothing found, the mask is empty' in output.err
    assert "step1" not in output.err


def test_the_step2_of_the_last_round_or_of_a_chosen_one(options, image, tmp_path):
    make(options, "step1")
    third = make(options, "step2", labels="pseudo", round="round-3")
    first = make(options, "step2", labels="pseudo")
    run(options, [str(image), "a dog"], tmp_path)
    run(options, [str(image), "a dog"], tmp_path, round=1)
    assert FakeSegmenter.loaded == [third.resolve(), first.resolve()]
    with pytest.raises(RisError, match=r"no finished step2 .*; run: ris train-step2 --round 2"):
        run(options, [str(image), "a dog"], tmp_path, round=2)
    with pytest.raises(RisError, match="leave out --checkpoint"):
        run(options, [str(image), "a dog"], tmp_path, round=1, checkpoint=first)


def test_json(options, image, tmp_path, capsys):
    make(options, "step2", labels="pseudo")
    run(dataclasses.replace(options, json=True, quiet=True), [str(image), "dog", "nothing"], tmp_path)
    output = capsys.readouterr()
    found, nothing = json.loads(output.out)
    assert json.loads((tmp_path / "predictions.json").read_text()) == [found, nothing]
    assert (found["image"], found["sentence"], found["score"]) == (str(image), "dog", 0.75)
    assert found["mask"] == str(tmp_path / "photo-1-mask.png")
    np.testing.assert_array_equal(coco_mask.decode(found["segmentation"]), LEFT)
    assert nothing["score"] == 0
    assert not coco_mask.decode(nothing["segmentation"]).any()
    assert output.err == ""


def test_a_folder_and_more_images(options, image, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.JPG", "photo.bmp"):
        PIL.Image.fromarray(np.full((2, 2, 3), 100, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    make(options, "step2", labels="pseudo")
    run(dataclasses.replace(options, json=True), [str(folder), str(image), "dog"], tmp_path / "out")
    records = json.loads(capsys.readouterr().out)
    assert [Path(record["image"]).name for record in records] == ["a.JPG", "b.png", "photo.bmp", "photo.png"]
    # two are called "photo": their suffix tells them apart
    names = [Path(record["mask"]).name for record in records]
    assert names == ["a-1-mask.png", "b-1-mask.png", "photo-1-mask.png", "photo.png-1-mask.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RisError, match="no image in this folder"):
        run(options, [str(tmp_path / "empty"), "dog"], tmp_path / "out")


def test_what_a_killed_run_had_begun_is_removed(options, image, tmp_path):
    make(options, "step2", labels="pseudo")
    out, maps = tmp_path / "out", tmp_path / "maps"
    left = [out / "photo-1-mask.png.0a1b2c3d.new", out / "predictions.json.0a1b2c3d.new", maps / "a.npy.0a1b2c3d.new"]
    others = [out / "photo-2-mask.png.0a1b2c3d.new", out / "other-1-map.png.0a1b2c3d.new"]
    for path in [*left, *others]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    run(options, [str(image), "the dog"], out, save_map=maps / "a.npy")
    assert [path.name for path in left if path.exists()] == []
    assert [path.name for path in others if not path.exists()] == []
    assert (maps / "a.npy").exists()


def test_the_map_as_numbers(options, image, tmp_path, capsys):
    step1 = make(options, "step1")
    run(options, [str(image), "dog"], tmp_path / "out", checkpoint=step1, save_map=tmp_path / "deep" / "map.npy")
    response = np.load(tmp_path / "deep" / "map.npy")
    assert response.dtype == np.float32
    np.testing.assert_array_equal(response, LEFT * np.float32(0.75))
    assert str(tmp_path / "deep" / "map.npy") in capsys.readouterr().out.splitlines()
    run(options, [str(image), "dog", "nothing"], tmp_path / "out", checkpoint=step1, save_map=tmp_path / "map.npy")
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["map-photo-1.npy", "map-photo-2.npy"]


def test_a_checkpoint_that_is_not_there(options, image, tmp_path):
    with pytest.raises(RisError, match=r"gone\.pth: no such checkpoint"):
        run(options, [str(image), "dog"], tmp_path / "out", checkpoint=tmp_path / "gone.pth")
    assert not (tmp_path / "out").exists()


def test_step1_where_there_is_no_step2(options, image, tmp_path, capsys):
    step1 = make(options, "step1")
    run(options, [str(image), "a dog"], tmp_path)
    assert "no finished step2 yet; by the coarser maps of step1" in capsys.readouterr().err
    assert FakeSegmenter.loaded == [step1.resolve()]


def test_nothing_trained_yet(options, image, tmp_path):
    with pytest.raises(RisError, match="run: ris train-step1 --dataset "):
        run(options, [str(image), "a dog"], tmp_path)


def test_dry_run_writes_nothing(options, image, tmp_path, capsys):
    make(options, "step2", labels="pseudo")
    run(dataclasses.replace(options, dry_run=True), [str(image), "dog"], tmp_path / "out")
    output = capsys.readouterr()
    assert output.out == ""
    assert "tiny/step2/" in output.err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_or_written(options, image, tmp_path):
    make(options, "step2", labels="pseudo")
    with pytest.raises(RisError, match="sentence 2 is empty"):
        run(options, [str(image), "dog", " "], tmp_path)
    with pytest.raises(RisError, match=r"gone\.jpg: no such image file"):
        run(options, [str(tmp_path / "gone.jpg"), "dog"], tmp_path)
    with pytest.raises(RisError, match=r"1 of 1 images could not be read: .* not a readable picture"):
        run(options, [str(tmp_path / "tiny.toml"), "dog"], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(RisError, match="cannot write there"):
        run(options, [str(image), "dog"], image)


def test_nothing_is_written_outside_of_out(options, image, tmp_path):
    """A sentence is no path, and of an image's path only the last part names files."""
    make(options, "step2", labels="pseudo")
    (tmp_path / "deep").mkdir()
    odd = tmp_path / "deep" / "..%2f..-x.png"
    odd.write_bytes(image.read_bytes())
    before = set(tmp_path.rglob("*"))
    run(options, [str(odd), "../../x", "/etc/passwd", "a\0b"], tmp_path / "out" / "here")
    new = set(tmp_path.rglob("*")) - before
    assert {path.parent for path in new if path.is_file()} == {tmp_path / "out" / "here"}
    assert len([path for path in new if path.suffix == ".png"]) >= 9


def test_nothing_is_predicted_by_damaged_weights(options, image, tmp_path):
    (make(options, "step2", labels="pseudo") / "files.json").write_text("{} ")
    with pytest.raises(RisError, match=r"damaged: files\.json: .*`ris status --repair`"):
        run(options, [str(image), "dog"], tmp_path / "out")


def test_the_shipped_clip_segments_before_anything_is_trained(tmp_path, capsys):
    red, green = (np.full((96, 80, 3), colour, np.uint8) for colour in ((220, 30, 30), (30, 160, 30)))
    PIL.Image.fromarray(np.concatenate([red, green], axis=1)).save(tmp_path / "photo.png")
    options = Options(runs=tmp_path / "runs", device="cpu")
    run(options, [str(tmp_path / "photo.png"), "the red square"], tmp_path / "out")
    output = capsys.readouterr()
    assert "shapes: nothing is trained yet; `ris train-step1` and what follows do better" in output.err
    assert "by the CLIP of shapes alone" in output.err
    mask = read(str(tmp_path / "out" / "photo-1-mask.png")) > 0
    assert mask.shape == (96, 160)
    assert mask[:, :80].mean() > mask[:, 80:].mean()


def test_a_shells_glob(options, image, tmp_path, capsys):
    """photos/*.png "the dog": what looks like an image is one, never a sentence."""
    make(options, "step2", labels="pseudo")
    other = image.with_name("second.png")
    other.write_bytes(image.read_bytes())
    run(dataclasses.replace(options, json=True), [str(image), str(other), "the dog", "the cat"], tmp_path / "out")
    records = json.loads(capsys.readouterr().out)
    assert [(record["image"], record["sentence"]) for record in records] == [
        (str(path), text) for path in (image, other) for text in ("the dog", "the cat")
    ]
    with pytest.raises(RisError, match="no sentence"):
        run(options, [str(image), str(other)], tmp_path / "out")
    with pytest.raises(RisError, match=r"second\.png' is an image, not a sentence"):
        run(options, [str(image), "the dog", str(other)], tmp_path / "out")
    run(options, ["the dog"], tmp_path / "more", more=[image, other])
    assert len(list((tmp_path / "more").glob("*-mask.png"))) == 2


def test_a_bad_image_does_not_cost_the_others(options, image, tmp_path, capsys):
    make(options, "step2", labels="pseudo")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(image.read_bytes())
    (folder / "b.png").write_bytes(image.read_bytes()[:40])
    (folder / "d.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(RisError, match=r"^2 of 4 images could not be read: .*b\.png.*; .*d\.heic is HEIC"):
        run(options, [str(folder), "dog"], tmp_path / "out")
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(record["image"]).name for record in records] == ["a.png", "c.png"]


def test_a_second_call_adds_and_overwrites_nothing_of_another_image(options, image, tmp_path):
    make(options, "step2", labels="pseudo")
    same_stem = tmp_path / "photo.webp"
    PIL.Image.fromarray(np.full((2, 2, 3), 7, np.uint8)).save(same_stem)
    out = tmp_path / "out"
    run(options, [str(image), "dog"], out)
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    run(options, [str(same_stem), "dog", "nothing"], out)
    run(options, [str(image), "nothing"], out)
    assert {name: (out / name).read_bytes() for name in before} == before
    records = json.loads((out / "predictions.json").read_text())
    assert [(Path(record["image"]).name, record["sentence"], Path(record["mask"]).name) for record in records] == [
        ("photo.png", "dog", "photo-1-mask.png"),
        ("photo.webp", "dog", "photo.webp-1-mask.png"),
        ("photo.webp", "nothing", "photo.webp-2-mask.png"),
        ("photo.png", "nothing", "photo-2-mask.png"),
    ]
    run(options, [str(image), "dog"], out)  # again: in its place
    assert len(json.loads((out / "predictions.json").read_text())) == 4
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "predictions.json").write_text('{"mine": 1}')
    with pytest.raises(RisError, match="not written by `ris predict`; choose another --out"):
        run(options, [str(image), "dog"], tmp_path / "foreign")


def test_what_a_user_should_know(options, image, tmp_path, capsys):
    """Long sentences, deep pictures, files passed over; the network by name in the records."""
    step2 = make(options, "step2", labels="pseudo")
    folder = tmp_path / "photos"
    folder.mkdir()
    PIL.Image.fromarray(np.array([[0, 65535], [32768, 0]], np.uint16)).save(folder / "deep.png")
    (folder / "notes.txt").write_text("x")
    run(options, [str(folder), "one two three four"], tmp_path / "out")
    errors = capsys.readouterr().err
    assert "too long: " in errors
    assert "deep.png: grey values of more than 8 bits" in errors
    assert "1 other files and folders are ignored" in errors
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["network"] == str(step2.resolve())
    overlay = read(record["overlay"])
    assert overlay[0, 1].tolist() == [255, 255, 255]
    assert overlay[0, 0].tolist() == [128, 20, 20]  # black under half of (255, 40, 40)


def test_a_photograph_is_turned_as_its_exif_says(options, tmp_path, capsys):
    make(options, "step2", labels="pseudo")
    picture = PIL.Image.fromarray(np.array([[[0] * 3, [90] * 3], [[180] * 3, [255] * 3]], np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    picture.save(tmp_path / "phone.png", exif=exif)
    run(options, [str(tmp_path / "phone.png"), "nothing"], tmp_path / "out")
    assert read(str(tmp_path / "out" / "phone-1-overlay.png"))[:, :, 0].tolist() == [[180, 0], [255, 90]]
    run(options, [str(tmp_path / "phone.png"), "nothing"], tmp_path / "raw", raw_orientation=True)
    assert read(str(tmp_path / "raw" / "phone-1-overlay.png"))[:, :, 0].tolist() == [[0, 90], [180, 255]]


def test_that_nothing_is_trained_is_said_always(tmp_path, capsys):
    PIL.Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    options = Options(runs=tmp_path / "runs", device="cpu", quiet=True)
    run(options, [str(tmp_path / "photo.png"), "the red square"], tmp_path / "out")
    assert "nothing is trained yet" in capsys.readouterr().err
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "untrained" in record["network"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "stdin"])
def test_a_table_of_images_and_sentences(options, image, tmp_path, form, capsys, monkeypatch):
    """Each image with its own sentences; an image is looked for beside the table, too."""
    make(options, "step2", labels="pseudo")
    other = image.with_name("second.png")
    other.write_bytes(image.read_bytes())
    rows = [("second.png", "the cat"), (str(image), "the dog"), (str(image), "nothing"), ("second.png", "nothing")]
    table = tmp_path / f"list.{form}"
    if form == "jsonl":
        table.write_text("\n".join(json.dumps({"image": name, "sentence": text}) for name, text in rows))
    else:
        table.write_text("\n".join(["image,sentence", *(f"{name},{text}" for name, text in rows)]))
    if form == "stdin":
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(table.read_bytes())))
        monkeypatch.chdir(tmp_path)
    run(dataclasses.replace(options, json=True), ["-" if form == "stdin" else str(table)], tmp_path / "out")
    records = json.loads(capsys.readouterr().out)
    assert [(Path(record["image"]).name, record["sentence"]) for record in records] == [
        ("second.png", "the cat"), ("second.png", "nothing"), ("photo.png", "the dog"), ("photo.png", "nothing"),
    ]  # fmt: skip
    assert [record["score"] for record in records] == [0.75, 0, 0.75, 0]


def test_a_pattern_in_quotes(options, image, tmp_path, capsys):
    make(options, "step2", labels="pseudo")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.png").write_bytes(image.read_bytes())
    run(dataclasses.replace(options, json=True), [f"{tmp_path}/**/*.png", "where is the dog?"], tmp_path / "out")
    records = json.loads(capsys.readouterr().out)
    assert [Path(record["image"]).name for record in records] == ["b.png", "photo.png"]
    with pytest.raises(RisError, match=r"\*\.jpg: no such image file"):
        run(options, [f"{tmp_path}/*.jpg", "dog"], tmp_path / "out")
