"""GroupViT's fine-tuning and its answer, against sums done by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ris_pipeline.datasets import Expression
from ris_pipeline.errors import RisError
from ris_pipeline.maps.rule import compute_map, compute_mask
from ris_pipeline.methods import groupvit
from ris_pipeline.methods.configs import GroupVitConfig
from ris_pipeline.networks.weights.clip_weights import load_clip
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.draws import Draw
from tiny import draw_epoch, make_noise

pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[methods]'")

CONFIG = GroupVitConfig(
    weights=None, side=64, width=16, heads=2, depth=1, n_first_groups=6, n_groups=3, text_width=16, text_heads=2,
    text_layers=1, n_tokens=20, projection=12, embed_dim=8, input_size=64, batch_size=3, lr=1e-3,
)  # fmt: skip
SENTENCES = ["the red star", "left circle", "the red star"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return groupvit.build(CONFIG, None)


@pytest.fixture
def batch():
    draws = [Draw(i, Expression(i, sentence), ()) for i, sentence in enumerate(SENTENCES)]
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Batch(pixels, torch.arange(3), draws, None, (0, 1, 2))


def test_the_loss_by_hand(network, batch):
    """The groups of evaluation mode are not drawn, so that both computations see the same."""
    task = groupvit.build_task(network, CONFIG).eval()
    with torch.no_grad():
        found = task(batch)["loss"].item()
        model = network.model
        image = model.get_image_features(batch.pixels).pooler_output.double().numpy()
        text = model.get_text_features(network.tokenize(SENTENCES)).pooler_output.double().numpy()
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    logits = image @ text.T / 0.07
    # Images 0 and 2 are said the same of: neither is the other's negative.
    rivals = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}
    both = [
        math.log(sum(math.exp(scores[i, j]) for j in rivals[i])) - scores[i, i]
        for scores in (logits, logits.T)
        for i in range(3)
    ]
    assert found == pytest.approx(sum(both) / 6, rel=1e-5)


def test_a_training_draws_its_groups(network, batch):
    task = groupvit.build_task(network, CONFIG).train()
    losses = set()
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        losses.add(task(batch)["loss"].item())
    assert len(losses) == 2


def test_vectors_do_not_decay(network):
    matrices, vectors = groupvit.build_task(network, CONFIG).optimizer().param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.05, 0)
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(network.parameters()))
    assert {p.ndim for p in vectors["params"]} == {0, 1}


def test_the_scale_stays_below_100(network):
    task = groupvit.build_task(network, CONFIG)
    with torch.no_grad():
        network.model.logit_scale.fill_(7)
    task.after_step(0, task.optimizer())
    assert network.model.logit_scale.exp().item() == pytest.approx(100)


def test_the_answer_by_hand(network):
    """Two groups, alike to the sentence by 0.8 and −0.6: a patch of both halves gets 0.1."""
    responder = groupvit.wrap(network, CONFIG)
    assert responder.grid_hw == (4, 4)
    features = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    shares = torch.tensor([[[1.0, 0.5, 0.0]], [[0.0, 0.5, 1.0]]])
    grids = responder.respond((features, shares), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(grids, torch.tensor([[[0.8, 0.1, -0.6]]]))
    # Stretched it is 1, ½ and 0: the mask holds what lies above the middle.
    mask = compute_mask(compute_map(grids, responder.rule, 64, (1, 3)), responder.rule)
    assert mask.tolist() == [[[True, False, False]]]


def test_a_batch_has_one_ref_of_an_image(tmp_path):
    dataset = make_noise(tmp_path)
    for batch in draw_epoch(groupvit.plan(dataset, CONFIG, 0), 0):
        images = [dataset.refs[draw.ref].image_id for draw in batch]
        assert len(set(images)) == len(images)


@pytest.fixture
def read_by_clip():
    """The configuration in which the small CLIP reads the sentences, and its network."""
    config = replace(CONFIG, text_encoder="clip", clip="shapes", clip_weights=None, embed_dim=256)
    torch.manual_seed(0)
    return config, groupvit.build(config, None)


def test_a_clip_reads_the_sentences_and_does_not_learn(read_by_clip, batch):
    config, network = read_by_clip
    clip = load_clip("shapes", None).eval()
    with torch.no_grad():
        expected = clip.encode_text(clip.tokenize(SENTENCES))
        found = network.encode_text(network.tokenize(SENTENCES))
    np.testing.assert_allclose(found, expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert network.n_tokens == clip.n_tokens
    task = groupvit.build_task(network, config).train()
    assert not network.clip.training
    task(batch)["loss"].backward()
    learning = {id(parameter) for group in task.optimizer().param_groups for parameter in group["params"]}
    without = {name for name, parameter in network.named_parameters() if id(parameter) not in learning}
    assert without == {f"clip.{name}" for name, _ in network.clip.named_parameters()}
    assert not [name for name in network.state_dict() if "text_model" in name]


def test_with_a_clip_it_is_built_from_its_file_alone(read_by_clip, tmp_path):
    config, network = read_by_clip
    torch.save(network.state_dict(), tmp_path / "model.pth")
    again = groupvit.build(replace(config, weights="no such file"), tmp_path / "model.pth")
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_clip_of_another_width_is_refused():
    config = replace(CONFIG, text_encoder="clip", clip="shapes", clip_weights=None)
    with pytest.raises(RisError, match="embed_dim = 8: this CLIP's is 256"):
        groupvit.build(config, None)
