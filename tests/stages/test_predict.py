"""Prediction from the artifacts alone: there is no data set here, only its card."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask

from ris_pipeline import predict as library
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.publish import publish
from ris_pipeline.errors import RisError
from ris_pipeline.predict import Prediction
from stages.options import StageOptions
from stages.predict import run

LEFT = np.array([[True, False], [True, False]])


class FakeSegmenter:
    """Finds the left half for any sentence but "nothing"."""

    loaded: list[Path]

    @classmethod
    def load(cls, path, device):
        cls.loaded.append(path)
        return cls()

    def segment_images(self, images, sentences):
        for image in images:
            assert image.shape == (2, 2, 3)
            masks = [LEFT & (sentence != "nothing") for sentence in sentences]
            yield [Prediction(mask.astype(np.float32) * 0.75, mask) for mask in masks]


@pytest.fixture
def options(tmp_path: Path, monkeypatch) -> StageOptions:
    monkeypatch.setattr(library, "Segmenter", FakeSegmenter)
    FakeSegmenter.loaded = []
    card = 'name = "tiny"\nformat = "pairs"\nannotations = "no"\nimages = "no"\n[splits]\ntrain = 1\n'
    (tmp_path / "tiny.toml").write_text(card)
    return StageOptions(dataset=str(tmp_path / "tiny.toml"), runs=tmp_path / "runs", device="cpu")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(np.full((2, 2, 3), 100, np.uint8)).save(path)
    return path


def make(options: StageOptions, stage: str, **flags: str) -> Path:
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
    run(options, [image], ["a dog", "nothing"], tmp_path / "a" / "out")
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


def test_json(options, image, tmp_path, capsys):
    make(options, "step2", labels="pseudo")
    run(dataclasses.replace(options, json=True, quiet=True), [image], ["dog", "nothing"], tmp_path)
    output = capsys.readouterr()
    one, nothing = json.loads(output.out)
    assert json.loads((tmp_path / "predictions.json").read_text()) == [one, nothing]
    assert (one["image"], one["sentence"], one["score"]) == (str(image), "dog", 0.75)
    assert one["mask"] == str(tmp_path / "photo-1-mask.png")
    np.testing.assert_array_equal(coco_mask.decode(one["segmentation"]), LEFT)
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
    run(dataclasses.replace(options, json=True), [folder, image], ["dog"], tmp_path / "out")
    records = json.loads(capsys.readouterr().out)
    assert [Path(one["image"]).name for one in records] == ["a.JPG", "b.png", "photo.bmp", "photo.png"]
    # two are called "photo": their suffix tells them apart
    names = [Path(one["mask"]).name for one in records]
    assert names == ["a-1-mask.png", "b-1-mask.png", "photo.bmp-1-mask.png", "photo.png-1-mask.png"]
    with pytest.raises(RisError, match="have one name; predict them into different folders"):
        run(options, [image, image], ["dog"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RisError, match="no image in this folder"):
        run(options, [tmp_path / "empty"], ["dog"], tmp_path / "out")


def test_the_map_as_numbers(options, image, tmp_path, capsys):
    step1 = make(options, "step1")
    run(options, [image], ["dog"], tmp_path / "out", checkpoint=step1, save_map=tmp_path / "deep" / "map.npy")
    response = np.load(tmp_path / "deep" / "map.npy")
    assert response.dtype == np.float32
    np.testing.assert_array_equal(response, LEFT * np.float32(0.75))
    assert str(tmp_path / "deep" / "map.npy") in capsys.readouterr().out.splitlines()
    run(options, [image], ["dog", "nothing"], tmp_path / "out", checkpoint=step1, save_map=tmp_path / "map.npy")
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["map-photo-1.npy", "map-photo-2.npy"]


def test_a_checkpoint_that_is_not_there(options, image, tmp_path):
    with pytest.raises(RisError, match=r"gone\.pth: no such checkpoint"):
        run(options, [image], ["dog"], tmp_path / "out", checkpoint=tmp_path / "gone.pth")
    assert not (tmp_path / "out").exists()


def test_step1_where_there_is_no_step2(options, image, tmp_path, capsys):
    step1 = make(options, "step1")
    run(options, [image], ["a dog"], tmp_path)
    assert "no finished step2 yet; by the coarser maps of step1" in capsys.readouterr().err
    assert FakeSegmenter.loaded == [step1.resolve()]


def test_nothing_trained_yet(options, image, tmp_path):
    with pytest.raises(RisError, match="run: ris train-step1 --dataset "):
        run(options, [image], ["a dog"], tmp_path)


def test_dry_run_writes_nothing(options, image, tmp_path, capsys):
    make(options, "step2", labels="pseudo")
    run(dataclasses.replace(options, dry_run=True), [image], ["dog"], tmp_path / "out")
    output = capsys.readouterr()
    assert output.out == ""
    assert "tiny/step2/" in output.err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_or_written(options, image, tmp_path):
    make(options, "step2", labels="pseudo")
    with pytest.raises(RisError, match="sentence 2 is empty"):
        run(options, [image], ["dog", " "], tmp_path)
    with pytest.raises(RisError, match=r"gone\.jpg: no such image file"):
        run(options, [tmp_path / "gone.jpg"], ["dog"], tmp_path)
    with pytest.raises(RisError, match="not a readable picture"):
        run(options, [tmp_path / "tiny.toml"], ["dog"], tmp_path)
    with pytest.raises(RisError, match="cannot write there"):
        run(options, [image], ["dog"], image)


def test_nothing_is_written_outside_of_out(options, image, tmp_path):
    """A sentence is no path, and of an image's path only the last part names files."""
    make(options, "step2", labels="pseudo")
    (tmp_path / "deep").mkdir()
    odd = tmp_path / "deep" / "..%2f..-x.png"
    odd.write_bytes(image.read_bytes())
    before = set(tmp_path.rglob("*"))
    run(options, [odd], ["../../x", "/etc/passwd", "a\0b"], tmp_path / "out" / "here")
    new = set(tmp_path.rglob("*")) - before
    assert {path.parent for path in new if path.is_file()} == {tmp_path / "out" / "here"}
    assert len([path for path in new if path.suffix == ".png"]) >= 9


def test_nothing_is_predicted_by_damaged_weights(options, image, tmp_path):
    (make(options, "step2", labels="pseudo") / "files.json").write_text("{} ")
    with pytest.raises(RisError, match=r"damaged: files\.json: .*`ris status --repair`"):
        run(options, [image], ["dog"], tmp_path / "out")


def test_the_shipped_clip_segments_before_anything_is_trained(tmp_path, capsys):
    red, green = (np.full((96, 80, 3), colour, np.uint8) for colour in ((220, 30, 30), (30, 160, 30)))
    PIL.Image.fromarray(np.concatenate([red, green], axis=1)).save(tmp_path / "photo.png")
    options = StageOptions(runs=tmp_path / "runs", device="cpu")
    run(options, [tmp_path / "photo.png"], ["the red square"], tmp_path / "out")
    output = capsys.readouterr()
    assert "shapes: nothing is trained yet; `ris train-step1` and what follows do better" in output.err
    assert "by the CLIP of shapes alone" in output.err
    mask = read(str(tmp_path / "out" / "photo-1-mask.png")) > 0
    assert mask.shape == (96, 160)
    assert mask[:, :80].mean() > mask[:, 80:].mean()
