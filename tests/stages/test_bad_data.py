import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ris_pipeline.config import Step1Config
from ris_pipeline.datasets import check as deep
from ris_pipeline.errors import RisError
from stages import data
from stages.bad_data import find_bad_images
from stages.common import data_digest, open_dataset, request_of, resolve_config


def images_of(tiny):
    return tiny.data_root / "tiny" / "images"


def spoil(path):
    path.write_bytes(path.read_bytes()[:40])


def add_refs_with_masks(tiny) -> None:
    """Refs on a.png (4 rows, 6 columns): a whole mask, one of another size, one that is no picture."""
    folder = tiny.data_root / "tiny"
    PIL.Image.fromarray(np.ones((4, 6), np.uint8)).save(folder / "whole.png")
    PIL.Image.fromarray(np.ones((5, 6), np.uint8)).save(folder / "large.png")
    (folder / "broken.png").write_bytes(b"no picture")
    with (folder / "pairs.jsonl").open("a") as file:
        for name in ("whole", "large", "broken"):
            file.write(json.dumps({"image": "a.png", "ref": name, "sentence": name, "mask": f"{name}.png"}) + "\n")
    card = Path(tiny.dataset)
    card.write_text(card.read_text().replace("train = 2", "train = 5"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_deep_check_lists_what_cannot_be_used(tiny, capsys, workers):
    tiny = replace(tiny, workers=workers, json=True)
    data.run_check(tiny, deep=True)
    assert json.loads(capsys.readouterr().out)["unusable"] == []
    add_refs_with_masks(tiny)
    spoil(images_of(tiny) / "b.png")
    with pytest.raises(RisError, match=r"tiny: 3 images and masks cannot be used; .*--skip-bad"):
        data.run_check(tiny, deep=True)
    image, large, broken = json.loads(capsys.readouterr().out)["unusable"]
    assert f"{images_of(tiny) / 'b.png'} is not a readable picture" in image
    assert "large.png has 6×5 pixels, the image has 6×4" in large
    assert "broken.png is not a readable picture" in broken


def test_a_deep_check_lists_all_faulty_records(tiny, capsys):
    path = tiny.data_root / "tiny" / "pairs.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "{", '{"image": "a.png"}', *['{"image": "../b.png"}'] * 12]) + "\n")
    with pytest.raises(RisError, match=r"pairs\.jsonl:4: not valid JSON"):
        data.run_check(tiny)
    message = r"tiny: 14 faults in the annotations \(the first 10 above\); mend them, then check again"
    with pytest.raises(RisError, match=message):
        data.run_check(tiny, deep=True)
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in shown] == [f"{path}:{number}" for number in range(4, 14)]
    with pytest.raises(RisError, match=message):
        data.run_check(replace(tiny, json=True), deep=True)
    assert len(json.loads(capsys.readouterr().out)["unusable"]) == 14


def test_a_picture_of_another_size_than_its_record_is_unusable(tiny):
    add_refs_with_masks(tiny)  # from now on a.png has a size on record

    def decode(path, mode):
        return np.zeros((8, 6, 3), np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep, "load_picture", decode)
        bad = find_bad_images(replace(tiny, workers=0))
    assert [fault for _, fault in bad] == [f"{images_of(tiny) / 'a.png'} has 6×8 pixels, its record says 6×4"]


def test_only_new_and_changed_images_are_opened_again(tiny, monkeypatch):
    opened = []
    load = deep.load_picture
    monkeypatch.setattr(deep, "load_picture", lambda path, mode: (opened.append(path.name), load(path, mode))[1])
    tiny = replace(tiny, workers=0, skip_bad=True)
    assert find_bad_images(tiny) == []
    assert find_bad_images(tiny) == []
    assert opened == ["a.png", "b.png"]
    spoil(images_of(tiny) / "b.png")
    for _ in range(2):
        assert [image.path.name for image, _ in find_bad_images(tiny)] == ["b.png"]
    assert opened == ["a.png", "b.png", "b.png"]
    assert len(find_bad_images(replace(tiny, force=True))) == 1
    assert opened[3:] == ["a.png", "b.png"]


def request(options):
    return request_of(options, "step1", resolve_config(options, Step1Config, "step1"))


def test_what_is_left_out_is_part_of_the_digest(tiny):
    whole = request(tiny)
    assert request(replace(tiny, skip_bad=True)).identity == whole.identity  # nothing to leave out: the same result
    spoil(images_of(tiny) / "b.png")
    without_b = request(replace(tiny, skip_bad=True))
    assert without_b.identity != whole.identity
    assert len(without_b.skipped_images) == 1
    (images_of(tiny) / "b.png").unlink()
    assert request(replace(tiny, skip_bad=True)).identity == without_b.identity
    assert data_digest(tiny) == whole.inputs["data"]  # as long as it is not asked for


def test_refs_of_bad_images_are_gone(tiny):
    spoil(images_of(tiny) / "b.png")
    options = replace(tiny, skip_bad=True)
    assert [ref.expressions[0].sentence for ref in open_dataset(options, "train").refs] == ["the dog"]
    with pytest.raises(RisError, match="tiny val: no image can be read; `ris data check --deep` says why"):
        open_dataset(options, "val")
