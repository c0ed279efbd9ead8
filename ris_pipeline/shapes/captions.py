"""Picture–caption pairs for the small CLIP's contrastive training: made on the fly, never the same twice.

A pair holds a picture and one sentence that is true of it, as a web page would. Nothing in it says which
pixels the sentence is about: no box, no mask, no crop around an object of a larger picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ris_pipeline.arrays import Pixels
from ris_pipeline.shapes.render import TEXTURES, Thing, draw_background, render
from ris_pipeline.shapes.scenes import (
    PLACES,
    RELATIONS,
    WORDS,
    has_room,
    is_described,
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

    picture: Pixels
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


@dataclass(frozen=True, slots=True)
class Claim:
    """What a caption claims of a scene: there are things of these looks, at a place or in a relation.

    looks: a thing and those of its attributes that are named. place: of the only look, a key of PLACES. relation: of
    the first look to the second, a key of RELATIONS.
    """

    looks: tuple[tuple[Thing, tuple[str, ...]], ...]
    place: str | None = None
    relation: str | None = None

    def is_clearly_false_of(self, things: list[Thing]) -> bool:
        """Return whether nobody would claim this of these things."""
        fitting = [[thing for thing in things if is_described(thing, *look)] for look in self.looks]
        if self.place is not None:
            return all(is_placed(thing, self.place) is False for thing in fitting[0])
        if self.relation is not None:
            pairs = [(a, b) for a in fitting[0] for b in fitting[1] if a is not b]
            return all(is_related(a, b, self.relation) is False for a, b in pairs)
        return not all(fitting)


def _say_relation(things: list[Thing], rng: np.random.Generator, p: float) -> tuple[str, Claim] | None:
    a, b = (things[i] for i in rng.permutation(len(things))[:2])
    names = [name for name in RELATIONS if is_related(a, b, name)]
    if not names:
        return None
    looks = tuple((thing, tuple(sample_attributes(rng, p))) for thing in (a, b))
    first, second = (phrase(*look, rng) for look in looks)
    return f"{first} {RELATIONS[names[0]][rng.integers(2)]} the {second}", Claim(looks, relation=names[0])


def _say_position(things: list[Thing], rng: np.random.Generator, p: float) -> tuple[str, Claim] | None:
    thing = things[int(rng.integers(len(things)))]
    places = [place for place in PLACES if is_placed(thing, place)]
    if not places:
        return None
    place = places[rng.integers(len(places))]
    templates = PLACES[place][0]
    look = thing, tuple(sample_attributes(rng, p))
    return templates[rng.integers(len(templates))].format(phrase(*look, rng)), Claim((look,), place=place)


def _say_list(things: list[Thing], rng: np.random.Generator, p: float) -> tuple[str, Claim]:
    n = min(len(things), int(rng.integers(1, 3)))
    chosen = [things[int(i)] for i in rng.permutation(len(things))[:n]]
    looks = tuple((thing, tuple(sample_attributes(rng, p))) for thing in chosen)
    return " and ".join(phrase(*look, rng) for look in looks), Claim(looks)


def _caption(things: list[Thing], rng: np.random.Generator, p: float) -> tuple[str, Claim]:
    """Return a sentence true of the scene, and what it claims."""
    draw = rng.random()
    said = None
    if len(things) > 1 and draw < 0.45:
        said = _say_relation(things, rng, p)
    elif draw < 0.8:
        said = _say_position(things, rng, p)
    return said or _say_list(things, rng, p)


def _swap_looks(
    things: list[Thing], text: str, claim: Claim, attribute: str, rng: np.random.Generator
) -> tuple[list[Thing], str]:
    """Return scene and caption after the first thing named has swapped its colour or texture with another's."""
    old = getattr(claim.looks[0][0], attribute)
    others = [getattr(thing, attribute) for thing in things if getattr(thing, attribute) != old]
    if not others:
        return things, text
    # Everything of one look takes the other's, so that the words swap wherever they stand.
    new = others[rng.integers(len(others))]
    swap = {old: new, new: old}
    swapped = [replace(t, **{attribute: swap.get(getattr(t, attribute), getattr(t, attribute))}) for t in things]
    table = {word: WORDS.get(swap[value], (swap[value],))[0] for value in swap for word in WORDS.get(value, (value,))}
    return swapped, _swap_words(text, table)


def _sibling(things: list[Thing], text: str, claim: Claim, rng: np.random.Generator) -> tuple[list[Thing], str] | None:
    """Return a scene that differs in a single respect, and its caption, the same but for the words concerned.

    In one batch the two are each other's hardest negatives: word order and place words must be understood.
    None if every such scene leaves the caption true, as a mirror image leaves "star at the top".
    """
    kinds = (
        lambda: ([thing.mirrored() for thing in things], _swap_words(text, _MIRROR)),
        lambda: ([thing.upside_down() for thing in things], _swap_words(text, _FLIP)),
        lambda: _swap_looks(things, text, claim, "colour", rng),
        lambda: _swap_looks(things, text, claim, "texture", rng),
    )
    for kind in rng.permutation(len(kinds)):
        others, other_text = kinds[kind]()
        if claim.is_clearly_false_of(others):
            return others, other_text
    return None


def _draw(things: list[Thing], behind: list[Thing], side: int, rng: np.random.Generator) -> Pixels:
    """Return the picture of the things; those behind, and a quarter of all backgrounds, are faded."""
    background = draw_background((side, side), rng)
    if behind or rng.random() < 0.25:
        # As a masked picture: all else goes to mean grey.
        grey = np.array((124, 116, 104), np.float32)
        rest = render(behind, background)[0] if behind else background
        background = grey + (rest - grey) * np.float32(rng.uniform(0, 0.5))
    return render(things, background)[0]


def generate_pairs(
    rng: np.random.Generator, side: int, n_range: tuple[int, int], with_siblings: bool, with_faded: bool = False
) -> Iterator[Pair]:
    """Yield endless pairs of side × side pictures with n_range things each; a sibling follows its scene.

    with_faded: in 60 % of the pictures some things, drawn before the caption, fade with the background, and the
    caption is about those in front.
    """
    zoom = SCENE_SIDE / side
    while True:
        things = _sample_things(rng, int(rng.integers(n_range[0], n_range[1] + 1)), zoom)
        behind: list[Thing] = []
        if with_faded and len(things) > 1 and rng.random() < 0.6:
            n_front = 1 if rng.random() < 0.5 else int(rng.integers(1, len(things)))
            things, behind = things[:n_front], things[n_front:]
        text, claim = _caption(things, rng, p=float(rng.choice((0.35, 0.7, 1.0))))
        yield Pair(_draw(things, behind, side, rng), text)
        sibling = _sibling(things, text, claim, rng) if with_siblings else None
        if sibling is not None:
            yield Pair(_draw(sibling[0], behind, side, rng), sibling[1])


def vocabulary() -> list[str]:
    """Return every word that a caption or a generated sentence can contain, for choosing the token rows to ship."""
    from ris_pipeline.shapes.render import COLOURS, SHAPES, SIZES

    templates = [template for templates, _ in PLACES.values() for template in templates]
    phrases = [words for pair in RELATIONS.values() for words in pair]
    words = " ".join([*templates, *phrases, "the a and that is near"]).replace("{}", " ").split()
    synonyms = [word for pair in WORDS.values() for word in pair]
    return sorted({*words, *synonyms, *SHAPES, *COLOURS, *TEXTURES, *SIZES})
