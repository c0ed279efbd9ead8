"""The whole chain on the tiny data set in other layouts than the one it was generated in."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path("data/tiny/refer/shapes")


@pytest.fixture
def convert(project: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a project of the tiny data set's images, with the card's format and folder changed.

    It gives the refs and instances to `write`, with the folder for the annotations.
    """

    def convert(form: str, write: Callable[[Path, list[dict], dict], None]) -> Path:
        root = tmp_path / form
        shutil.copytree(project / "data/tiny/images", root / "data/tiny/images")
        (root / "data/tiny/new").mkdir()
        refs = pickle.loads((project / FOLDER / "refs(shapes).p").read_bytes())
        write(root / "data/tiny/new", refs, json.loads((project / FOLDER / "instances.json").read_text()))
        card = (project / "tiny.toml").read_text()
        card = card.replace('format = "refer"', f'format = "{form}"').replace("tiny/refer/shapes", "tiny/new")
        (root / "tiny.toml").write_text(re.sub(r"\[generate\].*?(?=\n\[)", "", card, flags=re.DOTALL))
        return root

    return convert


def score(root: Path, ris, capsys) -> list[dict]:
    capsys.readouterr()
    ris(root, "score", "--json")
    return json.loads(capsys.readouterr().out)


def test_gref_layout(convert, ris, chain, capsys):
    """Each image also has a sentence about all of its objects and one about nothing there."""

    def write(folder: Path, refs: list[dict], instances: dict) -> None:
        own = {}
        for ref in refs:
            ref["ann_id"] = [ref["ann_id"]]
            own.setdefault((ref["image_id"], ref["split"]), []).extend(ref["ann_id"])
        for n, ((image_id, split), ann_ids) in enumerate(own.items(), start=1000):
            for k, (meant, sentence) in enumerate(((ann_ids, "all of them"), ([-1], "the zebra"))):
                new = 2 * n + k
                sentences = [{"sent_id": 10_000 + new, "sent": sentence, "raw": sentence, "tokens": []}]
                refs.append(
                    {"ref_id": new, "ann_id": meant, "image_id": image_id, "split": split, "sentences": sentences}
                )
        (folder / "grefs(shapes).json").write_text(json.dumps(refs))
        (folder / "instances.json").write_text(json.dumps(instances))

    root = convert("grefcoco", write)
    for command in chain:
        ris(root, *command)
    rows = {(row["scored"], row["split"]): row for row in score(root, ris, capsys)}
    step2 = rows["step2", "val"]
    assert step2["metrics"]["n_acc"]["n_expressions"] == 4  # a sentence about nothing for each image of val
    for metric in ("t_acc", "pointit", "prec@0.5"):
        assert step2["metrics"][metric]["n_expressions"] == step2["sentences"] - 4
    assert step2["metrics"]["miou"]["n_expressions"] == step2["sentences"]
    # Nothing is learnt of what is not there: no pseudo-label, no response, no score of it in train.
    refs = json.loads((root / "data/tiny/new/grefs(shapes).json").read_text())
    there = {ref["ref_id"] for ref in refs if ref["split"] == "train" and ref["ann_id"] != [-1]}
    labels = root / "runs/tiny/pseudolabels/latest-refine"
    assert {int(path.stem) for path in labels.glob("*.png") if path.stem.isdigit()} == there
    assert "n_acc" not in rows["step1", "train"]["metrics"]
    ris(root, "report")
