"""`ris import-checkpoint`, and what the other commands make of its artifacts."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from ris_pipeline import Segmenter
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.networks.weights.clip_weights import load_clip

CARD = """
name = "{name}"
format = "refer"
partition = "shapes"
annotations = "made/refer/shapes"
images = "made/images"

[splits]
train = "any"
val = "any"
"""
GENERATE = """
[generate]
variant = "shapes"
seed = 0
n_images = { train = 2, val = 2 }
"""
KINDS = {"tris-step1": "step1", "tris-step2": "step2"}


@pytest.fixture
def ris(tmp_path, call_ris, capsys, tiny_clip, monkeypatch):
    """A function that runs a command on the data set "real" and returns its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    Path("real.toml").write_text(CARD.format(name="real"))
    Path("made.toml").write_text(CARD.format(name="made") + GENERATE)
    # PRMS's frozen CLIP is no part of a checkpoint
    Path("config.toml").write_text(f'[step1]\naux_clip = "{tiny_clip}"\naux_weights = "none"\n')

    def run(*arguments: object, dataset: str = "real.toml") -> tuple[int, str, str]:
        capsys.readouterr()
        status = call_ris(*arguments, dataset=dataset, device="cpu", workers=0, config="config.toml")
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_its_own(kind, ris, tiny_files, released_state, photo):
    status, out, _ = ris("import-checkpoint", tiny_files[kind], "--out", "deep/imported")
    assert (status, out) == (0, "deep/imported\n")
    manifest = json.loads(Path("deep/imported/manifest.json").read_text())
    state = released_state(kind)
    assert manifest["stage"] == KINDS[kind]
    assert manifest["counts"] == {"entries": len(state), "values": sum(value.numel() for value in state.values())}
    assert manifest["configuration"]["input_size"] == 320
    tensors = load_file("deep/imported/model.safetensors")
    assert len(tensors) == len(state)
    assert all(torch.equal(tensors[name.replace("backbone.", "clip.model.")], state[name]) for name in state)
    from_folder = Segmenter.load("deep/imported")(photo, "red dog")
    from_file = Segmenter.load(tiny_files[kind])(photo, "red dog")
    np.testing.assert_array_equal(from_folder.map, from_file.map)
    assert sorted(os.listdir("deep")) == ["imported"]  # noqa: PTH208


def test_again_and_over_something_else(ris, tiny_files):
    command = ("import-checkpoint", tiny_files["tris-step1"], "--out")
    assert ris(*command, "imported")[0] == 0
    before = Path("imported/manifest.json").stat().st_mtime_ns
    status, out, err = ris(*command, "imported")
    assert (status, out) == (0, "imported\n")
    assert "up to date" in err
    assert Path("imported/manifest.json").stat().st_mtime_ns == before
    assert ris(*command, "imported", "--force")[0] == 0
    assert Path("imported/manifest.json").stat().st_mtime_ns > before
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years")
    for force in ((), ("--force",)):
        status, _, err = ris(*command, "mine", *force)
        assert (status, err.count("\n")) == (1, 1)
        assert "mine: exists already" in err
    assert Path("mine/thesis.tex").read_text() == "years"
    status, _, err = ris(*command, "new", "--dry-run")
    assert status == 0
    assert not Path("new").exists()


def test_scored_as_if_trained_here(ris, tiny_files, released_state, independent):
    assert ris("data", "make-shapes", dataset="made.toml")[0] == 0
    assert ris("import-checkpoint", tiny_files["tris-step1"])[0] == 0
    assert ris("import-checkpoint", tiny_files["tris-step2"])[0] == 0
    assert ris("dump-responses", "--split", "val")[0] == 0
    status, out, _ = ris("score", "--split", "val", "--json")
    assert status == 0
    rows = {row["scored"]: row for row in json.loads(out)}
    assert {"step1", "prms", "step2"} <= rows.keys()

    maps, logits = [], []
    boxes, masks = read_truth("val")
    for file, sentences in read_sentences("val"):
        maps.extend(independent.step1_maps(released_state("tris-step1"), file, sentences))
        logits.extend(independent.step2_logits(released_state("tris-step2"), file, sentences))
    for name, responses, threshold in (("step1", maps, 1e-9), ("step2", logits, 0)):
        expected = score_plainly(responses, threshold, boxes, masks)
        found = {metric: rows[name]["metrics"][metric]["value"] for metric in expected}
        assert found == pytest.approx(expected, abs=0.01), name  # percent

    # PRMS: the map of one sentence of each ref, as often as the ref has sentences
    chosen = ResponseStore.open(Path("runs/real/responses/latest-val/val.zarr")).selected_rows
    counts = np.array([len(ref["sentences"]) for ref, _, _ in read_annotations("val")])
    of_ref = np.repeat(np.arange(len(counts)), counts)
    picked = np.flatnonzero(chosen)
    assert of_ref[picked].tolist() == list(range(len(counts)))
    rows_of_ref = np.repeat(picked, counts)
    expected = score_plainly([maps[row] for row in rows_of_ref], 1e-9, boxes, masks)
    assert {name: rows["prms"]["metrics"][name]["value"] for name in expected} == pytest.approx(expected, abs=0.01)

    # --min-box-area: without the targets whose box covers no more of the image
    shares = [(x2 - x1) * (y2 - y1) / mask.size for (x1, y1, x2, y2), mask in zip(boxes, masks, strict=True)]
    middle = float(np.median(shares))
    kept = [i for i, share in enumerate(shares) if share > middle]
    assert 0 < len(kept) < len(boxes)
    status, out, _ = ris("score", "--split", "val", "--stage", "step1", "--json", "--min-box-area", middle)
    (row,) = json.loads(out)
    assert (status, row["sentences"]) == (0, len(kept))
    large = [[values[i] for i in kept] for values in (maps, boxes, masks)]
    expected = score_plainly(large[0], 1e-9, *large[1:])
    assert {name: row["metrics"][name]["value"] for name in expected} == pytest.approx(expected, abs=0.01)

    status, out, _ = ris("status", "--verify", "--json")
    states = {row["artifact"]: row["state"] for row in json.loads(out)}
    assert (status, states["step1"], states["step2/pseudo"]) == (0, "fresh", "fresh")


def read_annotations(split):
    refs = pickle.loads(Path("data/made/refer/shapes/refs(shapes).p").read_bytes())
    instances = json.loads(Path("data/made/refer/shapes/instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    return [(ref, images[ref["image_id"]], annotations[ref["ann_id"]]) for ref in refs if ref["split"] == split]


def read_sentences(split):
    for ref, image, _ in read_annotations(split):
        yield Path("data/made/images") / image["file_name"], [sentence["sent"] for sentence in ref["sentences"]]


def read_truth(split):
    """Box xyxy and mask of every sentence."""
    from pycocotools import mask as coco

    boxes, masks = [], []
    for ref, image, annotation in read_annotations(split):
        x, y, w, h = annotation["bbox"]
        shape = annotation["segmentation"]
        if isinstance(shape, list):
            shape = coco.merge(coco.frPyObjects(shape, image["height"], image["width"]))
        elif isinstance(shape["counts"], list):
            shape = coco.frPyObjects(shape, *shape["size"])
        for _ in ref["sentences"]:
            boxes.append((x, y, x + w, y + h))
            masks.append(coco.decode(shape).astype(bool))
    return boxes, masks


def score_plainly(responses, threshold, boxes, masks):
    """Percent, sentence by sentence, as METHOD's section on scores has it."""
    n, in_box, on_mask, shares, both, either = len(boxes), 0, 0, [], 0, 0
    assert len(responses) == n > 0
    for response, (x1, y1, x2, y2), mask in zip(responses, boxes, masks, strict=True):
        y, x = np.unravel_index(response.argmax(), response.shape)
        in_box += x1 <= x <= x2 and y1 <= y <= y2
        on_mask += mask[y, x]
        predicted = response > threshold
        i, u = (predicted & mask).sum(), (predicted | mask).sum()
        shares.append(i / u)
        both, either = both + i, either + u
    return {
        "pointit": 100 * in_box / n,
        "pointm": 100 * on_mask / n,
        "miou": 100 * np.mean(shares),
        "oiou": 100 * both / either,
    }


def test_irnet_refines_without_training(ris, tiny_files):
    assert ris("data", "make-shapes", dataset="made.toml")[0] == 0
    assert ris("import-checkpoint", tiny_files["tris-step1"])[0] == 0
    assert ris("dump-responses", "--split", "train")[0] == 0
    status, out, _ = ris("import-checkpoint", tiny_files["irn"], "--out", "irnet")
    assert (status, out) == (0, "irnet\n")
    walk = ("--set", "log2_steps=1", "--set")
    Path("broken.pth").write_bytes(tiny_files["irn"].read_bytes()[:1000])
    status, _, err = ris("make-pseudolabels", *walk, "irnet=broken.pth", "--quiet")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("ris: broken.pth: damaged")
    assert not list(Path("runs").rglob("*.partial"))
    assert ris("make-pseudolabels", *walk, "irnet=irnet")[0] == 0
    (made,) = Path("runs/real/pseudolabels").glob("latest-refine")
    assert list(made.glob("[0-9]*.png"))
    assert not (made / "seeds").exists()
    by_folder = {path.name: path.read_bytes() for path in made.glob("[0-9]*.png")}
    assert ris("make-pseudolabels", *walk, f"irnet={tiny_files['irn']}")[0] == 0
    assert {path.name: path.read_bytes() for path in made.glob("[0-9]*.png")} == by_folder


def test_openais_clip(ris, released_state, write_released, tmp_path):
    file = write_released("clip", released_state("clip"), tmp_path / "RN50.pt")
    assert ris("import-checkpoint", file, "--out", "clip")[0] == 0
    clip = load_clip("clip")
    assert torch.equal(clip.model.text_projection, released_state("clip")["text_projection"])
    assert float(clip.model.transformer.resblocks[0].mlp.gelu(torch.tensor(1.0))) == pytest.approx(0.8458, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("irn", [], "give --out DIR, then: ris make-pseudolabels --set irnet=DIR"),
        ("tris-step1", ["--set", "epochs=3"], "an import takes input_size, aux_clip, aux_weights only"),
    ],
)
def test_what_makes_no_sense(kind, options, message, ris, tiny_files):
    status, _, err = ris("import-checkpoint", tiny_files[kind], *options)
    assert (status, err.count("\n")) == (1, 1)
    assert message in err
    assert not Path("runs").exists()


def test_not_into_a_generated_data_set(ris, tiny_files):
    status, _, err = ris("import-checkpoint", tiny_files["tris-step1"], dataset="made.toml")
    assert status == 1
    assert "was not trained on made; name its data set by --dataset" in err
