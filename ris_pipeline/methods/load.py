"""The trained network of an artifact, whichever method and stage made it."""

from __future__ import annotations

import torch

from ris_pipeline.artifacts.identity import Artifact
from ris_pipeline.artifacts.layout import WEIGHTS
from ris_pipeline.config import Step2Config, config_from_manifest
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import Responder
from ris_pipeline.methods import method_of
from ris_pipeline.methods.tris import Step2Responder
from ris_pipeline.networks.load import freeze, step2_from_config


def load_network(artifact: Artifact, device: torch.device) -> Responder:
    """Return the trained network of an artifact of step1 or step2, in evaluation mode.

    Raises RisError for another stage's artifact, and where its weights cannot be read.
    """
    stage = artifact.manifest["stage"]
    if stage == "step1":
        method = method_of(artifact)
        return method.load(config_from_manifest(method.config, artifact.manifest), device, artifact.path / WEIGHTS)
    if stage == "step2":
        config = config_from_manifest(Step2Config, artifact.manifest)
        network = step2_from_config(config, artifact.path / WEIGHTS)
        return Step2Responder(freeze(network, device), config.input_size)
    raise RisError(f"{artifact.path}: an artifact of {stage}, which does not segment; give one of step1 or step2")
