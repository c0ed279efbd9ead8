"""Scripts that several processes run together, as torchrun starts them, on a tiny data set; and what they leave."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ris_pipeline.artifacts.layout import MANIFEST, TRAINING_LOG

CHECKOUT = Path(__file__).parents[1]
# The beginning of each script; RUNS is the folder of its artifacts.
PLACES = """
from ris_pipeline import dump_responses, make_pseudolabels, score, train_step1, train_step2
from ris_pipeline.chain import predict
from ris_pipeline.chain.clip import pretrain_clip
from ris_pipeline.chain.context import open_context
from ris_pipeline.maps import store

store.BLOCK_ROWS = 8
places = {"data_root": "data", "runs": "RUNS", "device": "cpu", "workers": 0, "quiet": True}
"""


def run_script(root, n, script, start, name):
    """Run a script by n processes on root/<name>-n/, from what is in root/<start>/."""
    runs = f"{name}-{n}"
    shutil.copytree(root / start, root / runs, symlinks=True)
    path = root / f"{runs}.py"
    path.write_text((PLACES + script).replace("RUNS", runs))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, path], cwd=root, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def read_steps(artifact):
    """What a training logged of each step."""
    return [json.loads(line) for line in (artifact.path / TRAINING_LOG).read_text().splitlines()]


def digest_files(runs):
    """{path: SHA-256} of all that the artifacts hold; a manifest tells of the time of day, predictions.json of RUNS."""
    return {
        str(path.relative_to(runs)): hashlib.sha256(
            path.read_bytes().replace(runs.name.removeprefix("out-").encode(), b"RUNS")
        ).hexdigest()
        for path in sorted(runs.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, "data.json")
    }
