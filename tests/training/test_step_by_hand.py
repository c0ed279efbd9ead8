"""Whole training steps in numpy, from METHOD's formulas: the network, all three losses, their gradients, AdamW.

The image encoder is a small pyramid with a BatchNorm, the text encoder CLIP's own transformer; the frozen CLIP is
linear.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from by_hand import resize_matrix, softmax, unit
from ris_pipeline.config import Step1Config
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.step1 import Step1
from ris_pipeline.process.ranks import ALONE
from ris_pipeline.training.batches import RefBatches
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import train
from ris_pipeline.training.tasks import Step1Task
from tiny import TINY, Pyramid, make_noise

SIZE, HIDDEN, AUX_SIZE = 64, 5, 4
CONFIG = Step1Config(epochs=1, lr=1e-2, backbone_lr=1e-3, weight_decay=0.1)


class LinearClip(nn.Module):
    """Features linear in a 4×4 image, and in the counts of letters of a text."""

    image_size = AUX_SIZE

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(7)
        self.of_image = nn.Parameter(torch.tensor(rng.normal(size=(3 * AUX_SIZE**2, 5)), dtype=torch.float32))
        self.of_text = nn.Parameter(torch.tensor(rng.normal(size=(128, 5)), dtype=torch.float32))

    def tokenize(self, sentences):
        return torch.tensor(np.array([np.bincount(list(text.encode()), minlength=128) for text in sentences]))

    def encode_text(self, tokens):
        return tokens.to(self.of_text) @ self.of_text

    def adapt(self, pixels):
        return pixels

    def encode_image(self, pixels):
        return pixels.flatten(1) @ self.of_image.to(pixels)


@pytest.fixture
def plan(tmp_path):
    """Three steps of two refs."""
    return Plan(make_noise(tmp_path), 2, 1, 3, seed=4)


@pytest.fixture
def task():
    torch.manual_seed(0)
    network = Step1(Clip.from_config(TINY), Pyramid(), hidden=HIDDEN)
    with torch.no_grad():  # fresh scales of 1 and biases of 0 would hide mistakes
        for module in (network.attn_fusion, network.clip.model.transformer, network.image_encoder):
            for parameter in module.parameters():
                parameter.normal_(std=0.5)
    return Step1Task(network, LinearClip(), CONFIG)


# The step in numpy. P: the network's values by name.


def layer_norm(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * weight + bias


def convolve(x, weight, bias):
    """2×2 with stride 2, of x (B, C, H, W)."""
    B, C, H, W = x.shape
    patches = x.reshape(B, C, H // 2, 2, W // 2, 2)
    return np.einsum("bciyjx,ocyx->boij", patches, weight) + bias[:, None, None]


def encode_image(P, pixels):
    """c4 (B, 5, 2, 2), BatchNorm by the batch's own mean and variance."""
    x = convolve(pixels, P["image_encoder.conv1.weight"], P["image_encoder.conv1.bias"])
    mean, variance = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    weight, bias = P["image_encoder.bn1.weight"], P["image_encoder.bn1.bias"]
    x = (x - mean) / np.sqrt(variance + 1e-5) * weight[:, None, None] + bias[:, None, None]
    for i in range(1, 5):
        x = convolve(x, P[f"image_encoder.layer{i}.weight"], P[f"image_encoder.layer{i}.bias"])
    return x


def encode_text(P, tokens):
    """The end token's feature (N, 6) of CLIP's transformer: one layer, two heads of 4, causal."""
    P = {name.removeprefix("clip.model."): value for name, value in P.items()}
    layer = {k.removeprefix("transformer.resblocks.0."): v for k, v in P.items() if k.startswith("transformer")}
    features = []
    for row in tokens:
        row = row[: row.argmax() + 1]
        x = P["token_embedding.weight"][row] + P["positional_embedding"][: len(row)]
        qkv = layer_norm(x, layer["ln_1.weight"], layer["ln_1.bias"]) @ layer["attn.in_proj_weight"].T
        q, k, v = np.split(qkv + layer["attn.in_proj_bias"], 3, axis=1)
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            scores = q[:, h] @ k[:, h].T / 2
            scores[np.triu_indices(len(row), 1)] = -np.inf
            heads.append(softmax(scores, 1) @ v[:, h])
        x = x + np.hstack(heads) @ layer["attn.out_proj.weight"].T + layer["attn.out_proj.bias"]
        y = layer_norm(x, layer["ln_2.weight"], layer["ln_2.bias"])
        y = y @ layer["mlp.c_fc.weight"].T + layer["mlp.c_fc.bias"]
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + y @ layer["mlp.c_proj.weight"].T + layer["mlp.c_proj.bias"]
        features.append(layer_norm(x[-1], P["ln_final.weight"], P["ln_final.bias"]) @ P["text_projection"])
    return np.array(features)


def respond(P, v, T):
    """S (N, hw) of one image's v (hw, C) and the texts T (N, C): the bilateral prompt, then the scaled products."""

    def project(x, name):
        weight = P[f"attn_fusion.{name}.0.weight"]
        return x @ weight.reshape(weight.shape[:2]).T + P[f"attn_fusion.{name}.0.bias"]

    def norm(x, name):
        centred = x - x.mean(axis=0)
        normed = centred / np.sqrt((centred**2).mean(axis=0) + 1e-5)
        return normed * P[f"attn_fusion.{name}.1.weight"] + P[f"attn_fusion.{name}.1.bias"]

    Q_v, K_v, V_v = (np.maximum(norm(project(v, n), n), 0) for n in ("v_proj1", "v_proj2", "v_proj3"))
    Q_t, K_t, V_t = (np.maximum(project(T, n), 0) for n in ("t_proj1", "t_proj2", "t_proj3"))
    A_v, A_t = softmax(Q_v @ K_t.T / math.sqrt(HIDDEN), 1), softmax(Q_t @ K_v.T / math.sqrt(HIDDEN), 1)
    new_v = v + 0.1 * norm(project(A_v @ V_t, "v_output"), "v_output")
    new_t = T + 0.1 * project(A_t @ V_v, "t_output")
    return math.exp(P["logit_scale"]) * new_t @ new_v.T


def classify(S):
    """L_cls of S (B, N, hw) against the identity."""
    total = 0.0
    for i in range(len(S)):
        M = softmax(np.vstack([np.ones(S.shape[2]), S[i]]), 0)[1:]
        m = M.mean(axis=1)
        logits = S[i].mean(axis=1) + S[i].max(axis=1) + (1 - m) ** 3 * np.log(0.01 + m)
        sign = np.where(np.arange(len(logits)) == i, 1, -1)
        total += np.log1p(np.exp(-sign * logits)).mean()
    return total / len(S)


def losses_by_hand(P, aux, pixels, tokens, own_texts, negative_texts):
    """(L_pos + 2·L_neg + 5·L_cls, L_cls, L_pos, L_neg) of a batch with one ref an image."""
    c4 = encode_image(P, pixels)
    V = c4.reshape(*c4.shape[:2], -1).transpose(0, 2, 1) @ P["vis_project.weight"][:, :, 0, 0].T + P["vis_project.bias"]
    T = unit(encode_text(P, tokens) @ P["lan_project.weight"].T + P["lan_project.bias"])
    S = np.stack([respond(P, v, T) for v in unit(V)])

    up, down = resize_matrix(2, SIZE, False), resize_matrix(SIZE, AUX_SIZE, True)
    positive, negative = [], []
    for i in range(len(S)):
        a = down @ (1 / (1 + np.exp(-(up @ S[i, i].reshape(2, 2) @ up.T)))) @ down.T
        f = unit((a * np.stack([down @ c @ down.T for c in pixels[i]])).reshape(-1) @ aux["of_image"])
        positive.append(-math.log(min(max(f @ unit(own_texts[i]), 1e-4), 0.9999)))
        negative.append(np.mean([-math.log(1 - f @ unit(n)) for n in negative_texts[i]]))
    L_cls, L_pos, L_neg = classify(S), np.mean(positive), np.mean(negative)
    return L_pos + 2 * L_neg + 5 * L_cls, L_cls, L_pos, L_neg


def as_numpy(module):
    return {name: value.detach().double().numpy().copy() for name, value in module.state_dict().items()}


def read_step(plan, task, step):
    """One batch, and the same as arrays for `losses_by_hand`."""
    batch = RefBatches(plan, 1, SIZE)[step]
    aux = as_numpy(task.aux)

    def letters(sentences):
        return np.array([np.bincount(list(text.encode()), minlength=128) for text in sentences]) @ aux["of_text"]

    sentences = [draw.sentence for draw in batch.draws]
    arrays = (
        aux,
        batch.pixels.double().numpy(),
        task.network.clip.tokenize(sentences).numpy(),
        letters(sentences),
        [letters(draw.negatives) for draw in batch.draws],
    )
    assert batch.image_of.tolist() == list(range(len(sentences)))
    return batch, arrays


def test_losses_and_gradients_of_a_whole_step(plan, task):
    """The gradient along one random direction for each parameter, by central differences of the numpy step."""
    task.train()
    step = next(s for s in range(3) if len(read_step(plan, task, s)[0].pixels) == 2)
    batch, arrays = read_step(plan, task, step)
    task.network.double()
    losses = task(replace(batch, pixels=batch.pixels.double()))
    P = as_numpy(task.network)
    expected = losses_by_hand(P, *arrays)
    assert [losses[name].item() for name in ("loss", "cls", "pos", "neg")] == pytest.approx(expected, rel=1e-5)
    assert 1e-3 < expected[2] < 9  # not at the limits of the cosine, where the gradient would be 0

    losses["loss"].backward()
    rng = np.random.default_rng(1)
    checked = 0
    for name, parameter in task.network.named_parameters():
        if parameter.grad is None:  # of CLIP what Step-1 does not use
            assert name.startswith(("clip.model.visual.", "clip.model.logit_scale", "logit_scale")), name
            continue
        direction = rng.normal(size=parameter.shape)
        if name == "clip.model.token_embedding.weight":
            direction[np.setdiff1d(np.arange(len(direction)), arrays[2])] = 0
        ends = [losses_by_hand({**P, name: P[name] + h * direction}, *arrays)[0] for h in (1e-5, -1e-5)]
        slope = (ends[0] - ends[1]) / 2e-5
        found = (parameter.grad.numpy() * direction).sum()
        # S leaves the network in float32, as in training
        assert found == pytest.approx(slope, rel=2e-3, abs=2e-5 * np.linalg.norm(direction)), name
        checked += 1
    assert checked == sum(p.grad is not None for p in task.network.parameters()) > 40


def test_adamw_over_whole_steps(plan, task, tmp_path):
    """Three steps of the loop against AdamW in numpy, at rates that fall with (1 − step/3)^0.9.

    The gradients are those of a twin at the same values, so that they agree to the last digit.
    """
    twin = copy.deepcopy(task).train()
    snapshots = [{name: p.detach().clone() for name, p in task.network.named_parameters()}]

    def keep(step, losses):
        snapshots.append({name: p.detach().clone() for name, p in task.network.named_parameters()})

    train(
        task, RefBatches(plan, 1, SIZE), tmp_path, device=torch.device("cpu"), precision="fp32", workers=0,
        ranks=ALONE, seed=plan.seed, report=keep,
    )  # fmt: skip
    assert len(snapshots) == 4

    m, v = ({name: np.zeros(p.shape) for name, p in snapshots[0].items()} for _ in range(2))
    for step in range(3):
        with torch.no_grad():
            for name, parameter in twin.network.named_parameters():
                parameter.copy_(snapshots[step][name])
        twin.zero_grad()
        twin(read_step(plan, twin, step)[0])["loss"].backward()
        for name, parameter in twin.network.named_parameters():
            before, after = snapshots[step][name].double().numpy(), snapshots[step + 1][name].double().numpy()
            if parameter.grad is None:
                np.testing.assert_array_equal(after, before, err_msg=name)
                continue
            g = parameter.grad.double().numpy()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            m_hat, v_hat = m[name] / (1 - 0.9 ** (step + 1)), v[name] / (1 - 0.999 ** (step + 1))
            rate = (1e-3 if name.startswith(("clip.", "image_encoder.")) else 1e-2) * (1 - step / 3) ** 0.9
            expected = before * (1 - rate * 0.1) - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
            np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-4 * rate, err_msg=f"{name}, step {step}")
            assert (after != before).any(), name
