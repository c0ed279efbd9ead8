"""What one image takes of a worker process."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from pathlib import Path
import numpy as np
from ris_pipeline.refine.labels import write_refined, write_seeds

rng = np.random.default_rng(0)
image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)  # noise: no two pixels share a vertex of the lattice
y, x = np.mgrid[:480, :640]
maps = np.stack([np.exp(-((y - 40 * i) ** 2 + (x - 50 * i) ** 2) / 2 / 80**2) for i in range(12)]).astype(np.float32)
edge = rng.random((120, 160), np.float32)
displacement = rng.normal(size=(2, 120, 160)).astype(np.float32)
folder = Path(sys.argv[1])
write_seeds(folder, range(12), maps, image, 0.3, 0.1)
write_refined(folder, range(12), maps, edge, displacement, (480, 640), 0.25, 10.0, 256, 5)
status = Path("/proc/self/status").read_text()  # ru_maxrss would start at what the parent process held
print(int(status.split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_refinement_of_an_image_of_480_640_stays_below_1_gb(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert len(list(tmp_path.glob("*.png"))) == 12
    peak = int(done.stdout) * 1024
    print(f"{peak / 1e6:.0f} MB")
    assert peak < 1e9


LARGE = """
import sys
from pathlib import Path
import numpy as np, torch
from PIL import Image as Picture
from ris_pipeline.config import PseudolabelConfig
from ris_pipeline.datasets import Dataset, Expression, Image, Ref
from ris_pipeline.datasets.records import group_by_image
from ris_pipeline.maps.rule import RESPONSE
from ris_pipeline.maps.store import ResponseStore
from ris_pipeline.networks.load import irnet_from_config
from ris_pipeline.refine.pseudolabels import save_refined, save_seeds

folder, hw = Path(sys.argv[1]), (3000, 4000)
noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
Picture.fromarray(noise).resize(hw[::-1], Picture.Resampling.BICUBIC).save(folder / "photo.jpg")
refs = tuple(Ref(i, 0, "train", (Expression(i, "a"),)) for i in range(2))
dataset = Dataset("photos", "train", {0: Image(0, folder / "photo.jpg", None)}, refs)
store = ResponseStore.create(folder / "train.zarr", sent_id=[0, 1], ref_id=[0, 1], image_hw=[hw] * 2, grid_hw=(10, 10),
                             rule=RESPONSE, input_size=320, attributes={})
store.write_block(0, np.random.default_rng(1).normal(size=(2, 10, 10)).astype(np.float32))
config = PseudolabelConfig(irn_weights=None)
groups, ignore = group_by_image(dataset), lambda n: None
for name in ("seeds", "labels"):
    (folder / name).mkdir()
save_seeds(dataset, store, groups, folder / "seeds", config, 0, ignore)
net = irnet_from_config(config)
save_refined(dataset, store, groups, folder / "labels", net, config, None, torch.device("cpu"), 0, ignore)
sizes = {path.parent.name: Picture.open(path).size for path in folder.glob("*/*.png")}
assert sizes == {"seeds": (640, 480), "labels": (4000, 3000)}, sizes
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_a_photograph_of_12_megapixels_is_refined_within_1_5_gb(tmp_path):
    """In one process with torch, IRNet's ResNet-50, CRF and walk; without a limit it took over 8 GB."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout) * 1024
    print(f"{peak / 1e6:.0f} MB")
    assert peak < 1.5e9
