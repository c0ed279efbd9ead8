import dataclasses

import numpy as np
import pytest

from calls import Options, call
from ris_pipeline.datasets.card import read_card
from ris_pipeline.datasets.io.images import load_image
from ris_pipeline.datasets.load import load_dataset
from ris_pipeline.errors import RisError
from stages import data, init


def test_the_example_is_a_whole_data_set(tmp_path, capsys):
    options = Options(data_root=tmp_path)
    call(init.run, options, name="mine", data_root=tmp_path)
    output = capsys.readouterr()
    assert output.out == f"{tmp_path}/mine.toml\n"
    assert f"then: ris data check --dataset {tmp_path}/mine.toml" in output.err
    call(data.run_check, dataclasses.replace(options, dataset=str(tmp_path / "mine.toml")), deep=True)
    assert capsys.readouterr().out.splitlines() == [
        "mine train: 1 images, 2 refs, 4 sentences (card: any number)",
        "mine val: 1 images, 2 refs, 4 sentences (card: any number)",
    ]
    dataset = load_dataset(read_card(tmp_path / "mine.toml"), tmp_path, "val")
    circle, square = dataset.refs
    assert [e.sentence for e in circle.expressions] == ["the red circle", "the circle on the right"]
    pixels = load_image(dataset.images[circle.image_id])
    for ref, colour in ((circle, [255, 0, 0]), (square, [0, 0, 255])):
        left, top, right, bottom = map(int, ref.box_xyxy)
        painted = np.argwhere((pixels == colour).all(axis=2))
        assert (painted.min(axis=0).tolist(), painted.max(axis=0).tolist()) == ([top, left], [bottom - 1, right - 1])


def test_what_is_there_is_kept(tmp_path):
    options = Options(data_root=tmp_path)
    call(init.run, options, name="mine", data_root=tmp_path)
    (tmp_path / "mine" / "pairs.jsonl").write_text("own work")
    with pytest.raises(RisError, match=r"mine\.toml: exists; choose another name, or --force"):
        call(init.run, options, name="mine", data_root=tmp_path)
    assert (tmp_path / "mine" / "pairs.jsonl").read_text() == "own work"
    call(init.run, options, name="mine", data_root=tmp_path, force=True)
    assert len((tmp_path / "mine" / "pairs.jsonl").read_text().splitlines()) == 8
