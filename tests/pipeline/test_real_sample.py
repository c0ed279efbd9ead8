"""The whole chain on small pieces of the real data sets, where they lie beside the checkout: counts, keys, shapes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calls import places_in
from ris_pipeline.artifacts.find import find_latest
from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import flags_of_round
from ris_pipeline.datasets import Dataset, load_card, load_dataset
from ris_pipeline.datasets.io.labels import load_label
from ris_pipeline.maps.store import ResponseStore

SAMPLE = Path(__file__).parents[2].parent / "shared" / "real-sample"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real samples are not here"),
]

CARD = """
name = "refcoco"
format = "refer"
partition = "unc"
annotations = "refer/refcoco"
images = "train2014"

[splits]
train = "any"
val = "any"
"""
COMMANDS = (
    ["data", "check"],
    ["train-step1"],
    ["dump-responses"],
    ["make-pseudolabels", "--no-refine"],
    ["make-pseudolabels", "--refine"],
    ["train-step2"],
    ["make-pseudolabels", "--round", "2", "--preset", "best"],
    ["score"],
)
SENTENCES = {"coco": {"train": 426, "val": 161}, "coco-unique": {"train": 246, "val": 148}}


@dataclass(frozen=True)
class Chain:
    """A finished chain: the sample's folder, its splits, and where its artifacts are."""

    folder: str
    datasets: dict[str, Dataset]
    runs: Path

    def latest(self, stage: str, **flags: str | bool) -> Artifact:
        artifact = find_latest(self.runs, "refcoco", stage, **flags)
        assert artifact is not None
        return artifact


@pytest.fixture(scope="module", params=list(SENTENCES))
def chain(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_stages: str,
    call_ris: Callable[..., int],
) -> Chain:
    root = tmp_path_factory.mktemp("chain")
    (root / "refcoco.toml").write_text(CARD + tiny_stages)
    data, runs = SAMPLE / request.param, root / "runs"
    places = {**places_in(root), "dataset": root / "refcoco.toml", "data_root": data}
    for command in COMMANDS:
        assert call_ris(*command, **places, quiet=True, debug=True) == 0, command
    card = load_card(root / "refcoco.toml")
    return Chain(request.param, {split: load_dataset(card, data, split) for split in card.splits}, runs)


def test_every_sentence_has_its_grid_and_every_ref_one_choice(chain):
    for split, dataset in chain.datasets.items():
        artifact = chain.latest("responses", split=split)
        store = ResponseStore.open(artifact.path / f"{split}.zarr")
        assert len(store) == artifact.manifest["counts"]["sentences"] == SENTENCES[chain.folder][split]
        assert store.grid_hw == (2, 2)  # 64 / 32, the stride of the last level
        assert np.isfinite(store.read_grids(range(len(store)))).all()
        for ref in dataset.refs:
            rows = store.rows_of_ref(ref.ref_id)
            assert store.sent_id[rows].tolist() == [expression.sent_id for expression in ref.expressions]
            assert {tuple(hw) for hw in store.image_hw[rows].tolist()} == {dataset.images[ref.image_id].hw}
            assert store.selected_rows[rows].sum() == 1


@pytest.mark.parametrize("flags", [{"refine": False}, {"refine": True}, flags_of_round(2)])
def test_every_ref_has_a_pseudo_label_of_its_images_size(chain, flags):
    dataset = chain.datasets["train"]
    folder = chain.latest("pseudolabels", **flags).path
    names = {path.stem for path in folder.glob("*.png")} - {"contact-sheet"}
    assert names == {str(ref.ref_id) for ref in dataset.refs}
    for ref in dataset.refs:
        label = load_label(folder / f"{ref.ref_id}.png")
        with Image.open(dataset.images[ref.image_id].path) as image:
            assert label.shape == (image.height, image.width)
        assert set(np.unique(label)) <= {0, 1}
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.mode == "RGB"


def test_every_stage_is_scored_on_all_sentences(chain):
    for split, names in {
        "train": ("chance", "step1", "prms", "pseudo-plain", "pseudo-refined", "pseudo-round2"),
        "val": ("chance", "step1", "prms", "step2"),
    }.items():
        for name in names:
            scores = json.loads((chain.latest("scores", scored=name, split=split).path / "scores.json").read_text())
            assert scores["sentences"] == SENTENCES[chain.folder][split]
            pointed = set() if name.startswith("pseudo") else {"pointit", "pointm"}
            assert pointed | {"miou", "oiou", "prec@0.5", "box@0.5"} <= scores["metrics"].keys()
            assert all(0 <= estimate["value"] <= 100 for estimate in scores["metrics"].values())


def test_nothing_unfinished_is_left(chain):
    assert not [*chain.runs.rglob("*.partial"), *chain.runs.rglob("*.lock"), *chain.runs.rglob("resume.pt")]
