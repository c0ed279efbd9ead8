"""Picture–caption pairs for the small CLIP's contrastive training: made on the fly, never the same twice.

A pair holds a picture and one sentence that is true of it, as a web page would. Nothing in it says which
pixels the sentence is about: no box, no mask, no crop around an object of a larger picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ris_pipeline.datasets.render import TEXTURES, Thing, draw_background, render
from ris_pipeline.datasets.scenes import (
    PLACES,
    RELATIONS,
    WORDS,
    has_room,
    is_placed,
    is_related,
    phrase,
    sample_attributes,
    sample_thing,
)

SCENE_SIDE = 160  # pixels; things keep the size in pixels that they have in a scene of this side
_MIRROR = {"left": "right", "right": "left"}
_FLIP = {
    "top": "bottom", "bottom": "top", "upper": "lower", "lower": "upper",
    "above": "below", "below": "above", "over": "under", "under": "over",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture, uint8 (S, S, 3) RGB, and a caption that is true of it."""

    picture: NDArray[np.uint8]
    caption: str


def _swap_words(text: str, table: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda word: table.get(word.group(), word.group()), text)


def _sample_things(rng: np.random.Generator, n: int, zoom: float) -> list[Thing]:
    things: list[Thing] = []
    kind: str | None = None
    for _ in range(12 * n):
        thing = sample_thing(rng, kind, zoom)
        if has_room(thing, things):
            things.append(thing)
            kind = thing.shape if rng.random() < 0.35 else None  # several of a kind are common
        if len(things) == n:
            break
    return things


def _relation_caption(things: list[Thing], rng: np.random.Generator, p: float) -> tuple[str, list[int]] | None:
    a, b = rng.permutation(len(things))[:2]
    names = [name for name in RELATIONS if is_related(things[a], things[b], name)]
    if not names:
        return None
    first, second = (phrase(things[i], sample_attributes(rng, p), rng) for i in (a, b))
    return f"{first} {RELATIONS[names[0]][rng.integers(2)]} the {second}", [int(a), int(b)]


def _position_caption(things: list[Thing], rng: np.random.Generator, p: float) -> tuple[str, list[int]] | None:
    a = int(rng.integers(len(things)))
    places = [place for place in PLACES if is_placed(things[a], place)]
    if not places:
        return None
    templates = PLACES[places[rng.integers(len(places))]][0]
    text = templates[rng.integers(len(templates))]
    return text.format(phrase(things[a], sample_attributes(rng, p), rng)), [a]


def _list_caption(things: list[Thing], rng: np.random.Generator, p: float) -> tuple[str, list[int]]:
    n = min(len(things), int(rng.integers(1, 3)))
    chosen = [int(i) for i in rng.permutation(len(things))[:n]]
    return " and ".join(phrase(things[i], sample_attributes(rng, p), rng) for i in chosen), chosen


def _caption(things: list[Thing], rng: np.random.Generator, p: float) -> tuple[str, list[int]]:
    """A sentence true of the scene, and the things it speaks of."""
    draw = rng.random()
    caption = None
    if len(things) > 1 and draw < 0.4:
        caption = _relation_caption(things, rng, p)
    elif len(things) > 1 and draw < 0.75:
        caption = _position_caption(things, rng, p)
    return caption or _list_caption(things, rng, p)


def _swap_looks(
    things: list[Thing], text: str, mentioned: list[int], rng: np.random.Generator
) -> tuple[list[Thing], str]:
    """The scene and caption after the mentioned things take on other colours or textures."""
    attribute = ("colour", "texture")[rng.integers(2)]
    values = {getattr(things[i], attribute) for i in range(len(things))}
    a = mentioned[0]
    others = [i for i in range(len(things)) if getattr(things[i], attribute) != getattr(things[a], attribute)]
    if len(values) < 2 or not others:
        return things, text
    b = others[rng.integers(len(others))]
    old, new = getattr(things[a], attribute), getattr(things[b], attribute)
    # Everything of one look takes the other's, so that the words swap wherever they stand.
    swap = {old: new, new: old}
    swapped = [replace(t, **{attribute: swap.get(getattr(t, attribute), getattr(t, attribute))}) for t in things]
    table = {word: WORDS.get(swap[value], (swap[value],))[0] for value in swap for word in WORDS.get(value, (value,))}
    return swapped, _swap_words(text, table)


def _sibling(things: list[Thing], text: str, mentioned: list[int], rng: np.random.Generator) -> tuple[list[Thing], str]:
    """A scene that differs in one respect, and the caption with the words that it makes different.

    Met in one batch, the two are each other's hardest negatives: word order and place words must be understood.
    """
    kind = rng.integers(3)
    if kind == 0:
        return [thing.mirrored() for thing in things], _swap_words(text, _MIRROR)
    if kind == 1:
        return [thing.upside_down() for thing in things], _swap_words(text, _FLIP)
    return _swap_looks(things, text, mentioned, rng)


def _draw(things: list[Thing], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    if rng.random() < 0.25:  # what a picture looks like behind a mask: all but the object gone to mean grey
        background = np.full((side, side, 3), (124, 116, 104), np.float32)
        background += (draw_background((side, side), rng) - background) * np.float32(rng.uniform(0, 0.4))
    else:
        background = draw_background((side, side), rng)
    return render(things, background)[0]


def generate_pairs(
    rng: np.random.Generator, side: int, n_range: tuple[int, int], with_siblings: bool
) -> Iterator[Pair]:
    """Endless pairs of side × side pictures with n_range things each; siblings follow each other."""
    zoom = SCENE_SIDE / side
    while True:
        things = _sample_things(rng, int(rng.integers(n_range[0], n_range[1] + 1)), zoom)
        text, mentioned = _caption(things, rng, p=float(rng.choice((0.35, 0.7, 1.0))))
        yield Pair(_draw(things, side, rng), text)
        if with_siblings:
            things, text = _sibling(things, text, mentioned, rng)
            yield Pair(_draw(things, side, rng), text)


def vocabulary() -> list[str]:
    """Every word that a caption or a generated sentence can contain, for choosing the token rows to ship."""
    from ris_pipeline.datasets.render import COLOURS, SHAPES, SIZES

    templates = [template for templates, _ in PLACES.values() for template in templates]
    phrases = [words for pair in RELATIONS.values() for words in pair]
    words = " ".join([*templates, *phrases, "the a and that is near"]).replace("{}", " ").split()
    synonyms = [word for pair in WORDS.values() for word in pair]
    return sorted({*words, *synonyms, *SHAPES, *COLOURS, *TEXTURES, *SIZES})
