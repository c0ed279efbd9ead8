"""README's way from nothing to scores on RefCOCO, on a sample: files of the hub's form from a server here, and make."""

import hashlib
import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from loopback import serve
from ris_pipeline.datasets.card import CARD_FOLDERS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NAME = "refcoco-hf"


def to_parquet(folder: Path) -> dict[str, bytes]:
    """The annotations of the tiny data set as jxu124's files of the hub have them: {name: content}."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    instances = json.loads((folder / "refer/shapes/instances.json").read_text())
    annotations = {record["id"]: record for record in instances["annotations"]}
    images = {record["id"]: record for record in instances["images"]}
    files = {}
    for split, hubs_name in (("train", "train"), ("val", "validation")):
        rows = [
            {key: ref[key] for key in ("ref_id", "ann_id", "image_id", "category_id", "split", "sentences")}
            | {
                "raw_anns": json.dumps(annotations[ref["ann_id"]]),
                "raw_image_info": json.dumps(images[ref["image_id"]]),
            }
            for ref in pickle.loads((folder / "refer/shapes/refs(shapes).p").read_bytes())
            if ref["split"] == split
        ]
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), content)
        files[f"data/{hubs_name}-00000-of-00001.parquet"] = content.getvalue()
    return files


def test_from_nothing_to_scores(project: Path, tmp_path: Path, tiny_stages: str, ris, capsys, monkeypatch) -> None:
    """The labels are byte for byte those of the same pictures in REFER's layout."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for path in (project / "data/tiny/images").iterdir():
            opened.write(path, f"train2014/{path.name}")
    files = to_parquet(project / "data/tiny")
    with serve() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        siblings = [
            {"rfilename": name, "size": len(data),
             "lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}}
            for name, data in files.items()
        ]  # fmt: skip
        listing = json.dumps({"id": "jxu124/refcoco", "sha": "c0ffee", "siblings": siblings}).encode()
        server.host("/api/datasets/jxu124/refcoco?blobs=true", listing, kind="application/json")
        for name, data in files.items():
            server.host(f"/datasets/jxu124/refcoco/resolve/c0ffee/{name}", data)
        # The shipped card, of another size, with small networks and this server in COCO's place.
        card = (CARD_FOLDERS[1] / f"{NAME}.toml").read_text()
        for old, new in (
            (r"^(train|val) = .*", r'\1 = "any"'), (r"^test[AB] = .*\n", ""), (r"^(n_bytes|digest) = .*\n", ""),
            (r"https?://images\.cocodataset\.org/zips/", f"{server.address}/"),
        ):  # fmt: skip
            card, n = re.subn(old, new, card, flags=re.MULTILINE)
            assert n
        server.host("/train2014.zip", archive.getvalue())
        (tmp_path / "data").mkdir()
        (tmp_path / f"data/{NAME}.toml").write_text(card + tiny_stages)
        monkeypatch.chdir(tmp_path)
        ris(tmp_path, "data", "fetch", NAME)

    for name in ("pyproject.toml", "constraints.txt", "ready"):  # what make installs is there
        (tmp_path / name).touch()
    settings = [f"DATASET={NAME}", f"RIS={sys.executable} -m stages.cli", "READY=ready"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "all", *settings], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    labels = tmp_path / f"runs/{NAME}/pseudolabels/latest-refine"
    for path in (project / "runs/tiny/pseudolabels/latest-refine").glob("*.png"):
        if path.stem.isdigit():
            assert (labels / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / f"runs/{NAME}/report/latest/report.html").is_file()

    capsys.readouterr()
    ris(tmp_path, "score", "--dataset", NAME, "--json")
    rows = {(row["scored"], row["split"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["step2", "val"]["metrics"]["miou"]["n_expressions"] > 0
    assert rows["step1", "val"]["paper"] == {"pointit": 60.95}  # Table 1's of RefCOCO
