"""Sentences about a generated scene, each true of one of its objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ris_pipeline.shapes.render import COLOURS, SHAPES, SIZES, TEXTURES, Thing

# True, False, or None where people would disagree; a sentence is used only where nobody would.
Verdict = bool | None

SIZE_RANGE = {"small": (0.24, 0.31), "big": (0.42, 0.52)}
WORDS = {"small": ("small", "little"), "big": ("big", "large"), "dotted": ("dotted", "spotted")}
PLACES = {
    "left": (("left {}", "{} on the left", "{} on the left side"), "l"),
    "right": (("right {}", "{} on the right", "{} on the right side"), "r"),
    "top": (("top {}", "{} at the top", "upper {}"), "t"),
    "bottom": (("bottom {}", "{} at the bottom", "lower {}"), "b"),
    "top left": (("top left {}", "{} in the top left corner", "{} at the upper left"), "tl"),
    "top right": (("top right {}", "{} in the top right corner", "{} at the upper right"), "tr"),
    "bottom left": (("bottom left {}", "{} in the bottom left corner", "{} at the lower left"), "bl"),
    "bottom right": (("bottom right {}", "{} in the bottom right corner", "{} at the lower right"), "br"),
    "middle": (("middle {}", "{} in the middle", "{} in the center"), "m"),
}
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
ATTRIBUTES = ("size", "texture", "colour")


def sample_thing(rng: np.random.Generator, shape: str | None = None, zoom: float = 1.0) -> Thing:
    """Return a random thing inside the picture; zoom > 1 enlarges it, as a crop of the picture would."""
    size = SIZES[rng.integers(len(SIZES))]
    side = zoom * float(rng.uniform(*SIZE_RANGE[size]))
    margin = 0.5 * side
    cx, cy = rng.uniform(margin, 1 - margin, 2)
    shift = rng.integers(-14, 15, 3)
    return Thing(
        shape=shape or SHAPES[rng.integers(len(SHAPES))],
        colour=tuple(COLOURS)[rng.integers(len(COLOURS))],
        texture=TEXTURES[rng.choice(len(TEXTURES), p=(0.4, 0.2, 0.2, 0.2))],
        size=size,
        cx=float(cx),
        cy=float(cy),
        side=side,
        angle=float(rng.uniform(-0.3, 0.3)),
        colour_shift=(int(shift[0]), int(shift[1]), int(shift[2])),
    )


def _look(thing: Thing) -> tuple[str, str, str, str]:
    return thing.shape, thing.colour, thing.texture, thing.size


def has_room(thing: Thing, others: Sequence[Thing]) -> bool:
    """Return whether thing overlaps each of the others at most a little, and looks unlike all of them."""
    for other in others:
        apart = np.hypot(thing.cx - other.cx, thing.cy - other.cy)
        if apart < 0.43 * (thing.side + other.side) or _look(thing) == _look(other):
            return False
    return True


def sample_scene(rng: np.random.Generator, n_range: tuple[int, int] = (3, 6)) -> list[Thing]:
    """Return things for a picture, two or three of them of the same shape.

    Several of a kind are what makes a sentence necessary: "the star" alone would not do.
    """
    n = int(rng.integers(n_range[0], n_range[1] + 1))
    kind = SHAPES[rng.integers(len(SHAPES))]
    n_of_kind = min(int(rng.integers(2, 4)), n)
    things: list[Thing] = []
    for _ in range(40 * n):
        thing = sample_thing(rng, kind if len(things) < n_of_kind else None)
        if has_room(thing, things):
            things.append(thing)
        if len(things) == n:
            break
    order = rng.permutation(len(things))
    return [things[i] for i in order]


def is_described(thing: Thing, like: Thing, attributes: Sequence[str]) -> bool:
    """Return whether a description of `like` by its shape and these attributes fits thing."""
    return thing.shape == like.shape and all(getattr(thing, a) == getattr(like, a) for a in attributes)


def is_placed(thing: Thing, place: str) -> Verdict:
    """Return whether thing stands at the place, a key of PLACES."""
    x, y = thing.cx, thing.cy
    verdicts: list[Verdict] = []
    for side in PLACES[place][1]:
        if side == "m":
            off = max(abs(x - 0.5), abs(y - 0.5))
            verdicts.append(True if off < 0.13 else (False if off > 0.2 else None))
        else:
            value = {"l": x, "r": 1 - x, "t": y, "b": 1 - y}[side]
            verdicts.append(True if value < 0.4 else (False if value > 0.5 else None))
    return _all(verdicts)


def is_related(thing: Thing, anchor: Thing, relation: str) -> Verdict:
    """Return whether thing is left of, right of, above or below the anchor."""
    dx, dy = thing.cx - anchor.cx, thing.cy - anchor.cy
    along, across = {"left": (-dx, dy), "right": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    if along > 0.12 and along >= abs(across):
        return True
    if along < 0.04 or abs(across) > 1.3 * along:
        return False
    return None


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if any(v is False for v in verdicts):
        return False
    return None if any(v is None for v in verdicts) else True


def _say(word: str, rng: np.random.Generator) -> str:
    choices = WORDS.get(word, (word,))
    return choices[rng.integers(len(choices))]


def phrase(thing: Thing, attributes: Sequence[str], rng: np.random.Generator) -> str:
    """Return "small striped red star": the thing's attributes, in the usual order, and its shape."""
    return " ".join([_say(getattr(thing, a), rng) for a in ATTRIBUTES if a in attributes] + [thing.shape])


def sample_attributes(rng: np.random.Generator, p: float = 0.5) -> list[str]:
    """Return a random subset of ATTRIBUTES, each in it with probability p."""
    return [a for a in ATTRIBUTES if rng.random() < p]


def _is_unique(things: Sequence[Thing], target: int, verdict_of: Callable[[Thing], Verdict]) -> bool:
    return all(verdict_of(thing) is (i == target) for i, thing in enumerate(things))


def _attribute_statement(things: Sequence[Thing], target: int, rng: np.random.Generator) -> str | None:
    attributes = sample_attributes(rng, 0.6)
    if not _is_unique(things, target, lambda t: is_described(t, things[target], attributes)):
        return None
    text = phrase(things[target], attributes, rng)
    return f"the {text}" if rng.random() < 0.3 else text


def _position_statement(things: Sequence[Thing], target: int, rng: np.random.Generator) -> str | None:
    attributes = sample_attributes(rng, 0.35)
    place = tuple(PLACES)[rng.integers(len(PLACES))]

    def verdict_of(thing: Thing) -> Verdict:
        return _all([is_described(thing, things[target], attributes), is_placed(thing, place)])

    if not _is_unique(things, target, verdict_of):
        return None
    templates = PLACES[place][0]
    text = templates[rng.integers(len(templates))].format(phrase(things[target], attributes, rng))
    return f"the {text}" if rng.random() < 0.3 else text


def _relation_statement(
    things: Sequence[Thing], target: int, rng: np.random.Generator, p_attributes: float = 0.6
) -> str | None:
    anchor = int(rng.integers(len(things)))
    relation = tuple(RELATIONS)[rng.integers(len(RELATIONS))]
    attributes, anchor_attributes = sample_attributes(rng, p_attributes), sample_attributes(rng, 0.4)
    is_anchor_clear = _is_unique(things, anchor, lambda t: is_described(t, things[anchor], anchor_attributes))

    def verdict_of(thing: Thing) -> Verdict:
        fits = is_described(thing, things[target], attributes)
        return _all([fits, is_related(thing, things[anchor], relation)])

    if anchor == target or not is_anchor_clear or not _is_unique(things, target, verdict_of):
        return None
    words = RELATIONS[relation][rng.integers(2)]
    text = f"{phrase(things[target], attributes, rng)} {words} the {phrase(things[anchor], anchor_attributes, rng)}"
    return f"the {text}" if rng.random() < 0.4 else text


def _long_statement(things: Sequence[Thing], target: int, rng: np.random.Generator) -> str | None:
    relation = _relation_statement(things, target, rng, p_attributes=0.8)
    if relation is None:
        return None
    subject, _, rest = relation.removeprefix("the ").partition(f" {things[target].shape} ")
    article = "a" if rng.random() < 0.5 else "the"
    place = next((p for p in ("top", "bottom", "left", "right") if is_placed(things[target], p)), None)
    near = f" near the {place}" if place and rng.random() < 0.5 else ""
    return f"{article} {subject} {things[target].shape}{near} that is {rest}" if rest else None


_MAKERS: dict[str, Callable[[Sequence[Thing], int, np.random.Generator], str | None]] = {
    "attributes": _attribute_statement,
    "position": _position_statement,
    "relation": _relation_statement,
    "long": _long_statement,
}
# What each variant says of a ref: RefCOCO allows positions, RefCOCO+ does not, RefCOCOg is long and relational.
VARIANTS: dict[str, tuple[str, str, str]] = {
    "shapes": ("attributes", "position", "relation"),
    "shapes+": ("attributes", "attributes", "attributes"),
    "shapesg": ("long", "long", "long"),
}


def describe(
    things: Sequence[Thing], target: int, variant: str, rng: np.random.Generator, n_tries: int = 40
) -> list[str] | None:
    """Return three different sentences, true of things[target] and clearly false of all others; None if not found."""
    texts: list[str] = []
    for maker in VARIANTS[variant]:
        for _ in range(n_tries):
            text = _MAKERS[maker](things, target, rng)
            if text is not None and text not in texts:
                texts.append(text)
                break
        else:
            return None
    return texts
