"""Starts `ris` commands as forked processes of their own group, so that each need not import torch again.

python launcher.py SECONDS reads lines of JSON, {"arguments": […], "stderr": path, "n_ranks": 1}, and answers each with
two lines: the pid of the process, and when it has ended its exit status (negative: the signal that ended it) and
the most memory that it had, in KiB (of it what it shares with this process). Of several ranks, which torchrun's agent
starts and watches in that process, they are its children.
SECONDS lie between two checkpoints of a training. The small CLIP is a smaller one here.
"""

import json
import os
import sys
from pathlib import Path


def serve(seconds: float) -> None:
    # Not above: the worker processes of the commands import this file.
    import cv2  # noqa: F401
    import open_clip
    import scipy.sparse  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torch.distributed.launcher.api
    import zarr  # noqa: F401

    from ris_pipeline.scoring import evaluate  # noqa: F401
    from ris_pipeline.training import checkpoints, contrastive, loop  # noqa: F401

    torch.set_num_threads(1)
    # What torch and open_clip import or read at first use.
    open_clip.tokenize("a word")
    number = torch.zeros(1, requires_grad=True)
    number.grad = torch.ones(1)
    for optimizer in (torch.optim.AdamW([number], fused=True), torch.optim.SGD([number], lr=0.1)):
        optimizer.step()
    checkpoints.SECONDS_BETWEEN_CHECKPOINTS = seconds
    contrastive.MODEL_CONFIG = {
        "embed_dim": 6,
        "vision_cfg": {"image_size": 160, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(request["arguments"], Path(request["stderr"]), request["n_ranks"])
        os.setpgid(pid, pid)
        print(pid, flush=True)
        _, status, usage = os.wait4(pid, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, flush=True)


def run(arguments: list[str], stderr: Path, n_ranks: int) -> None:
    """Runs one command in this process and ends it."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ris_pipeline.chain import predict
    from ris_pipeline.maps import store
    from stages.cli import main

    with stderr.open("ab") as errors, Path(os.devnull).open("r+b") as nothing:
        os.dup2(errors.fileno(), 2)
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 0)
    sys.argv = ["ris", *arguments]
    if n_ranks == 1:
        main()
    store.BLOCK_ROWS, predict.BATCH_SIZE = 16, 2  # so that each rank has some
    standalone = LaunchConfig(
        1, 1, n_ranks, run_id="storm", rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork",
        max_restarts=0,
    )  # fmt: skip
    elastic_launch(standalone, run_rank)()
    sys.exit()


def run_rank() -> None:
    """Runs the command of sys.argv as one of several ranks; torchrun's agent is the parent."""
    from ris_pipeline.process import ranks
    from stages.cli import main

    ranks._LAUNCHER = os.getppid()  # which was read when the parent imported it
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    serve(float(sys.argv[1]))
