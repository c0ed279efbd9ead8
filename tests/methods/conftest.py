"""A CLIP that the methods' own networks are made for: a ViT."""

import json
from pathlib import Path

import pytest

TINY_VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ViT-CLIP of random values, for the configuration's `clip`; `tiny_clip` is a ResNet."""
    from ris_pipeline.networks.weights.clip_weights import save_compact
    from tiny import build_random

    folder = tmp_path_factory.mktemp("vit")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_VIT}))
    save_compact(build_random(TINY_VIT), folder / "model.safetensors", range(0, 49408, 97))
    return folder
