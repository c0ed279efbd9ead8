"""The stages that are no training, shared out among processes of torchrun: the same bytes for any number of them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ris_pipeline import train_step1
from ris_pipeline.artifacts.layout import MANIFEST

pytestmark = pytest.mark.timeout(900)

CHECKOUT = Path(__file__).parents[2]
# The stages one after the other, in blocks of responses that are small enough for each process to have some.
CHAIN = """
from pathlib import Path
from ris_pipeline import dump_responses, make_pseudolabels, score
from ris_pipeline.maps import store

store.BLOCK_ROWS = 8
places = {"data_root": "data", "runs": "RUNS", "device": "cpu", "workers": 0, "quiet": True}
dump_responses("tiny.toml", **places)
for refine in (False, True):
    make_pseudolabels("tiny.toml", refine=refine, **places)
score("tiny.toml", **places)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_tiny_card, call_ris):
    """A folder with a card, its data set, a trained Step-1 in start/, and in runs-1/ all stages of one process."""
    folder = tmp_path_factory.mktemp("ranks")
    card = write_tiny_card(folder, train=8, val=4)
    assert call_ris("data", "make-shapes", dataset=card, data_root=folder / "data") == 0
    train_step1(str(card), data_root=folder / "data", runs=folder / "start", device="cpu", workers=0, quiet=True)
    make_all(folder, 1)
    return folder


def make_all(root, n):
    """Make the stages by n processes in runs-n/, from what is in start/."""
    subprocess.run(["cp", "-a", "start", f"runs-{n}"], cwd=root, check=True)
    script = root / f"chain-{n}.py"
    script.write_text(CHAIN.replace("RUNS", f"runs-{n}"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, script], cwd=root, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def digest_files(runs):
    """{path: SHA-256} of all that the artifacts hold; a manifest tells of the time of day."""
    return {
        str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(runs.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, "data.json")
    }


@pytest.mark.parametrize(
    "n", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.endurance)]
)
def test_any_number_of_processes_leaves_the_same_bytes(root, n):
    make_all(root, n)
    expected = digest_files(root / "runs-1")
    assert {name.split("/")[1] for name in expected} >= {"responses", "pseudolabels", "scores"}
    assert digest_files(root / f"runs-{n}") == expected
    links = {path.name for path in (root / f"runs-{n}").rglob("latest*")}
    assert links == {path.name for path in (root / "runs-1").rglob("latest*")}
