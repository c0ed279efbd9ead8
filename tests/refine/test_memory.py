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
