"""A training that starts from a released checkpoint."""

from dataclasses import replace

import pytest
import torch

from ris_pipeline.errors import RisError
from ris_pipeline.networks.load import step1_from_config, step2_from_config
from ris_pipeline.networks.weights.released import read_released


@pytest.mark.parametrize(("kind", "build"), [("tris-step1", step1_from_config), ("tris-step2", step2_from_config)])
def test_all_weights_are_those_of_the_file_and_can_be_trained(kind, build, tiny_files, released_state):
    # Of an image encoder with weights nothing is read: the file has all.
    config = replace(read_released(tiny_files[kind]).config, clip_weights="/nowhere", frozen_levels=1)
    network = build(config, tiny_files[kind])
    found = network.state_dict()
    for name, value in released_state(kind).items():
        assert torch.equal(found[name.replace("backbone.", "clip.model.")], value), name
    assert network.training
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert "clip.model.visual.layer4.0.conv1.weight" in trained
    assert "clip.model.visual.conv1.weight" not in trained  # a frozen level


def test_a_checkpoint_of_the_other_step_is_refused(tiny_files):
    config = read_released(tiny_files["tris-step1"]).config
    with pytest.raises(RisError, match="a checkpoint of kind tris-step2; give one of kind tris-step1"):
        step1_from_config(config, tiny_files["tris-step2"])
