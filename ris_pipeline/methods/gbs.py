"""GbS† (ICCV 2021): two images are blended by a random alpha map, which is to be found again from either's sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.datasets.records import Dataset
from ris_pipeline.errors import RisError
from ris_pipeline.maps.respond import Responder
from ris_pipeline.maps.rule import Rule
from ris_pipeline.methods.configs import GbSConfig
from ris_pipeline.methods.responder import NetworkResponder
from ris_pipeline.networks.clip import encode_each
from ris_pipeline.networks.gbs import GbS, compare_places, ground_words
from ris_pipeline.networks.load import load_stages
from ris_pipeline.networks.parts.stages import StageBackbone
from ris_pipeline.networks.vgg import build_vgg
from ris_pipeline.networks.weights.clip_weights import load_clip
from ris_pipeline.networks.weights.tensors import load_weights
from ris_pipeline.networks.words import ClipWordEncoder, WordEncoder, build_bert
from ris_pipeline.training.batches import Batch
from ris_pipeline.training.draws import Plan
from ris_pipeline.training.loop import Task
from ris_pipeline.training.losses import matching_loss
from ris_pipeline.training.sharing import gather_list, gather_rows, mean_over_ranks, weight_of


def draw_alphas(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Return alpha float (n, S, S) in [0, 1] and targets float (n, 2, S, S) in [0, 1] of n blends, at random.

    The blend is alpha · first + (1 − alpha) · second; the targets are what each image's sentence is to give. The first
    half, rounded up, is of Perlin noise, where the targets are alpha and 1 − alpha; the rest of two Gaussians a1 and
    a2, the targets, with alpha = a1 / (a1 + a2). By torch's random numbers, on the CPU.
    """
    n_perlin = (n + 1) // 2
    perlin = [draw_perlin_alpha(size) for _ in range(n_perlin)]
    gaussians = [torch.stack([draw_gaussian(size), draw_gaussian(size)]) for _ in range(n - n_perlin)]
    alphas = [*perlin, *(a1 / (a1 + a2 + 1e-7) for a1, a2 in gaussians)]
    targets = [*(torch.stack([alpha, 1 - alpha]) for alpha in perlin), *gaussians]
    return torch.stack(alphas), torch.stack(targets)


def draw_perlin_alpha(size: int) -> Tensor:
    """Return float (S, S) in [0, 1]: the product of one or two noises, each through one steep sigmoid and stretched."""
    temperature = torch.randn(()) / 10
    alpha = torch.ones(size, size)
    for _ in range(int(torch.randint(1, 3, ()))):
        noise = draw_perlin_noise(int(torch.randint(1, 3, ())), size)
        soft = torch.sigmoid(noise / temperature)
        soft = soft - soft.min()
        alpha = alpha * soft / (soft.max() + 1e-7)
    return alpha


def draw_perlin_noise(n_cells: int, size: int) -> Tensor:
    """Return Perlin noise float (S, S), about in [-0.7, 0.7], of n_cells × n_cells cells with random slopes between."""
    angles = 2 * torch.pi * torch.rand(n_cells + 1, n_cells + 1)
    slopes = torch.stack([angles.cos(), angles.sin()])  # (2, n + 1, n + 1), along x and y at the cells' corners
    place = torch.arange(size) * n_cells / size
    cell = place.long()
    inside = place - cell  # [0, 1): from the cell's first corner
    blend = inside**3 * (inside * (6 * inside - 15) + 10)
    noise = torch.zeros(size, size)
    for down in (0, 1):
        for right in (0, 1):
            slope = slopes[:, (cell + down)[:, None], (cell + right)[None]]
            rise = slope[0] * (inside - right)[None] + slope[1] * (inside - down)[:, None]
            share_y, share_x = (blend if far else 1 - blend for far in (down, right))
            noise += share_y[:, None] * share_x[None] * rise
    return noise


def draw_gaussian(size: int) -> Tensor:
    """Return float (S, S) in [0, 1]: a Gaussian of peak 1, its deviation on each axis whole pixels in [S/32, S/4)."""
    centre = size * torch.rand(2)
    deviation = torch.randint(size // 32, size // 4, (2,))
    distance = (torch.arange(size) - centre[:, None]) / deviation[:, None]
    y, x = torch.exp(-(distance**2) / 2).unbind()
    return y[:, None] * x


class HeatMaps(NamedTuple):
    """What the network finds in n blends, each float (n, h, w)."""

    first: Tensor  # by the sentence of the first image
    second: Tensor
    free: Tensor  # by no sentence
    foreign: Tensor  # by a sentence of another blend


def separation_losses(heat: HeatMaps, targets: Tensor, is_foreign: Tensor) -> dict[str, Tensor]:
    """Return the mean squared errors by name: "own", "free" and "foreign", float scalars.

    `targets` float (n, 2, S, S), read at the places of the heat-maps by the nearest neighbour. Without a sentence
    nothing tells the images apart: 1/2 everywhere. A foreign sentence is nowhere: 0; `is_foreign` bool (n,) tells of
    which blends this is true.
    """
    first, second = F.interpolate(targets, heat.first.shape[-2:], mode="nearest").unbind(1)
    foreign = heat.foreign.square().mean(dim=(1, 2))
    weight = weight_of(len(first), first.device)
    return {
        "own": weight * (F.mse_loss(heat.first, first) + F.mse_loss(heat.second, second)),
        "free": weight * (heat.free - 0.5).square().mean(),
        "foreign": (foreign * is_foreign).sum() / mean_over_ranks(is_foreign.sum()).clamp(min=1),
    }


def matching_losses(
    similarity: Tensor, is_word: Tensor, sentences: Sequence[str], scale: float, power: float
) -> Tensor:
    """Return the contrastive loss of words plus that of sentences, a float scalar ≥ 0.

    `similarity` float (n, N, L, 1 + T) of this process's n of N images with the N sentences and their words, of which
    the best level counts; `is_word` bool (N, T). Words are pooled by log(Σ exp(power · s)) / power; the softmax over
    images and over sentences is of scale · similarity.
    """
    best, _ = gather_rows(similarity.amax(dim=2))
    # Differs from GbS: padding adds exp(0) to the sum there.
    words = (power * best[..., 1:]).masked_fill(~is_word[None], -torch.inf).logsumexp(dim=-1) / power
    return 2 * (matching_loss(scale * best[..., 0], sentences) + matching_loss(scale * words, sentences))


class GbSTask(Task[Batch]):
    """Separation, and matching of the two images before they are blended; the batch's first half on its second."""

    network: GbS

    def __init__(self, network: GbS, config: GbSConfig) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.config = config

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam on all but the text encoder."""
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, self.config.lr, weight_decay=self.config.weight_decay)

    def rate(self, step: int, n_steps: int) -> float:
        """Return 0.1 to the number of decays so far."""
        return float(0.1 ** (step // self.config.decay_every))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses own, free, foreign, match and their weighted sum."""
        batch = batch.to(self.device)
        n = len(batch.draws) // 2  # blends
        if n == 0:
            raise RisError("a batch of one image, which has no other to be blended with: raise batch_size")
        sentences = [draw.sentence for draw in batch.draws][: 2 * n]
        pixels = batch.pixels[batch.image_of[: 2 * n]]
        with torch.no_grad():
            # Also those of the other processes: each image meets all sentences of the whole batch.
            everyone, first = gather_list(sentences)
            texts = encode_each(self.network.text, everyone).float()
        own, other = texts[first : first + n, 0], texts[first + n : first + 2 * n, 0]
        foreign, foreign_sentences = _roll(other, sentences[n:])
        alphas, targets = (drawn.to(self.device) for drawn in draw_alphas(n, pixels.shape[-1]))
        blends = alphas[:, None] * pixels[:n] + (1 - alphas[:, None]) * pixels[n:]
        levels = self.network.levels(blends)
        queries = (own, other, None, foreign)
        heat = HeatMaps(*(self.network.separate(levels, query).float() for query in queries))
        # Differs from GbS: a sentence that is also one of the blend's own is no foreign one.
        is_foreign = torch.tensor([foreign_sentences[i] not in (sentences[i], sentences[n + i]) for i in range(n)])
        losses = separation_losses(heat, targets, is_foreign.to(self.device))
        places = self.network.project_levels(self.network.levels(pixels)).float()
        similarity, _ = compare_places(places, texts)
        c = self.config
        losses["match"] = matching_losses(similarity, texts[:, 1:].any(dim=-1), everyone, c.match_scale, c.word_power)
        return {"loss": losses["own"] + losses["free"] + losses["foreign"] + c.weight_match * losses["match"], **losses}


def _roll(texts: Tensor, sentences: list[str]) -> tuple[Tensor, list[str]]:
    """Return of each of n blends the text float (n, D) and the sentence of the blend before it in the whole batch."""
    (all_texts, first), (all_sentences, _) = gather_rows(texts), gather_list(sentences)
    before = [(first + i - 1) % len(all_sentences) for i in range(len(sentences))]
    return all_texts[before], [all_sentences[i] for i in before]


class GbSResponder(NetworkResponder):
    """The root of separation times grounding of words, at stride 16."""

    network: GbS

    def __init__(self, network: GbS, config: GbSConfig) -> None:
        super().__init__(network, network.text, config.input_size)
        self.rule = Rule(
            via_input=False, activation="none", to_image="corners", normalise="max", threshold=config.threshold
        )

    @property
    def uncounted(self) -> WordEncoder:
        """What TRIS's Table 2 leaves out of the parameters."""
        return self.network.text

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Height and width of the stride-16 grid."""
        side = self.network.grid_side(self.input_size)
        return side, side

    def encode_images(self, pixels: Tensor) -> list[tuple[list[Tensor], Tensor]]:
        """Return of each image the two deepest levels, and the matched places float (1, L, h·w, D)."""
        levels = self.network.levels(pixels)
        places = self.network.project_levels(levels)
        return [([level[i : i + 1] for level in levels[-2:]], places[i : i + 1]) for i in range(len(pixels))]

    def encode_texts(self, sentences: list[str]) -> Tensor:
        """Return the sentences and their words float (N, 1 + T, D)."""
        encoded: Tensor = self.network.text(sentences)
        return encoded

    def respond(
        self, image: tuple[list[Tensor], Tensor], texts: Tensor, ref_ids: Sequence[int] | None = None
    ) -> Tensor:
        """Return √(heat-map × words' heat) float32 (n, h, w) in [0, 1] of one image and n sentences."""
        levels, places = image
        heat = self.network.separate([level.expand(len(texts), -1, -1, -1) for level in levels], texts[:, 0])
        words = ground_words(places, texts[:, 1:]).view_as(heat)
        return (heat.float().clamp(0, 1) * words.float().clamp(0, 1)).sqrt()


def build(config: GbSConfig, weights: Path | None) -> GbS:
    """Return the network of the weights in a file, or with pretrained image and text encoders."""
    is_trained = weights is not None
    clip_weights = None if is_trained else config.clip_weights
    text: WordEncoder
    if config.text_encoder == "bert":
        text = build_bert(config.bert_weights, is_trained=is_trained)
    else:
        text = ClipWordEncoder(load_clip(config.clip, clip_weights))
    features: nn.Sequential | StageBackbone
    if config.image_encoder == "vgg":
        features = build_vgg("vgg16_bn", config.width, None if is_trained else config.vgg_weights)
    else:
        features = load_stages(config.clip, clip_weights)
    network = GbS(text, features, 8 * config.width, config.levels)
    if weights is not None:
        load_weights(network, weights)
    return network


def build_task(network: GbS, config: GbSConfig) -> GbSTask:
    """Return the task of the network."""
    return GbSTask(network, config)


def plan(dataset: Dataset, config: GbSConfig, seed: int) -> Plan:
    """Return the plan of its batches, each of different images; RisError where there are no two to blend."""
    if len({ref.image_id for ref in dataset.refs}) < 2:
        raise RisError(f"{dataset.name} has refs on one image only in split {dataset.split!r}: GbS blends two images")
    return Plan(dataset, config.batch_size, refs_per_image=1, n_negatives=0, seed=seed, distinct_images=True)


def wrap(network: GbS, config: GbSConfig) -> Responder:
    """Return a trained network as a responder."""
    return GbSResponder(network, config)
