"""Settings of the whole test run, and what the tests of the commands share."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported anywhere: the tests' arrays are too small to gain from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP of random values, for the configuration's `clip`."""
    import torch

    from ris_pipeline.networks.clip import Clip
    from ris_pipeline.networks.clip_weights import save_compact

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP}))
    save_compact(Clip.from_config(TINY_CLIP), folder / "model.safetensors", range(0, 49408, 97))
    return folder


@pytest.fixture(scope="session")
def call_ris() -> Callable[..., int]:
    """A function that runs one command as the console script does and returns its exit status."""
    from stages.cli import main

    def call(*arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["ris", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        return int(stop.value.code or 0)

    return call
