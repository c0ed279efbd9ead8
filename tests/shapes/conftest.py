"""A reader of the generated sentences that knows English, not the code that made them."""

import re
from dataclasses import dataclass

import pytest

SIZE = {"small": "small", "little": "small", "big": "big", "large": "big"}
TEXTURE = {
    "plain": "plain", "striped": "striped", "checkered": "checkered", "dotted": "dotted", "spotted": "dotted",
}  # fmt: skip
COLOUR = {c: c for c in ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")}
SHAPE = {s: s for s in ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")}
SIDE = {
    "left": "left", "right": "right", "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom",
    "middle": "middle", "center": "middle",
}  # fmt: skip
RELATION = {
    "left of": "left",
    "right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}

PLACE_WORDS = r"(?:top|bottom|upper|lower|left|right|middle|center)"
RELATED = re.compile(
    r"(?P<subject>.+?)(?: that is)? (?:to the )?"
    r"(?P<relation>left of|right of|above|over|below|under) the (?P<anchor>.+)"
)
PLACE_FIRST = re.compile(rf"(?P<place>{PLACE_WORDS}(?: {PLACE_WORDS})?) (?P<look>.+)")
PLACE_LAST = re.compile(
    rf"(?P<look>.+) (?:on|at|in|near) the (?P<place>{PLACE_WORDS}(?: {PLACE_WORDS})?)(?: side| corner)?"
)


@dataclass(frozen=True)
class Reading:
    """What a sentence says: attributes of the thing, where it stands, its relation to another and that one's."""

    look: dict[str, str]
    place: tuple[str, ...]
    relation: str | None
    anchor: dict[str, str]

    @property
    def kind(self) -> str:
        return "relation" if self.relation else "position" if self.place else "attributes"


class Reader:
    """Reads strictly or generously: left is the left 40 % of the picture, or all of its left half; and so on."""

    def __init__(self, generous: bool) -> None:
        self.half, self.middle, self.slope = (0.5, 0.2, 1.3) if generous else (0.4, 0.13, 1.0)

    def parse(self, sentence: str) -> Reading:
        relation, anchor, place = None, {}, ()
        if related := RELATED.fullmatch(sentence):
            sentence, relation = related["subject"], RELATION[related["relation"]]
            anchor = parse_look(related["anchor"])
        sentence = re.sub("^(?:the|a) ", "", sentence)
        if placed := PLACE_FIRST.fullmatch(sentence) or PLACE_LAST.fullmatch(sentence):
            sentence, place = placed["look"], tuple(SIDE[word] for word in placed["place"].split())
        return Reading(parse_look(sentence), place, relation, anchor)

    def referents(self, sentence, things):
        """The indices of the things that the sentence fits; "the red star" as an anchor must be one thing."""
        said = self.parse(sentence)
        anchors = [thing for thing in things if said.relation and fits(thing, said.anchor)]
        if said.relation and len(anchors) != 1:
            return []
        return [i for i, thing in enumerate(things) if self._holds(said, thing, anchors)]

    def is_true(self, caption, things):
        """Whether things can be found in the picture that are as the caption says; others may be so as well."""
        if " and " in caption:
            first, second = (parse_look(part) for part in caption.split(" and "))
            return any(fits(a, first) and fits(b, second) for a in things for b in things if a is not b)
        said = self.parse(caption)
        return any(
            self._holds(said, a, [b] if said.relation else []) for a in things for b in things if fits(b, said.anchor)
        )

    def _holds(self, said, thing, anchors):
        return (
            fits(thing, said.look)
            and all(self._stands(thing, side) for side in said.place)
            and all(self._is_related(thing, anchor, said.relation) for anchor in anchors)
        )

    def _stands(self, thing, side):
        if side == "middle":
            return abs(thing.cx - 0.5) < self.middle and abs(thing.cy - 0.5) < self.middle
        return {
            "left": thing.cx < self.half,
            "right": thing.cx > 1 - self.half,
            "top": thing.cy < self.half,
            "bottom": thing.cy > 1 - self.half,
        }[side]

    def _is_related(self, thing, anchor, relation):
        right, down = thing.cx - anchor.cx, thing.cy - anchor.cy
        far, aside = {
            "left": (-right, down), "right": (right, down), "above": (-down, right), "below": (down, right),
        }[relation]  # fmt: skip
        return far > 0 and abs(aside) <= self.slope * far


def parse_look(words: str) -> dict[str, str]:
    """{"colour": "red", "shape": "star"} of "red star"; KeyError for a word that is none of these."""
    *attributes, shape = words.split()
    look = {"shape": SHAPE[shape]}
    for word in attributes:
        name = "size" if word in SIZE else "texture" if word in TEXTURE else "colour"
        assert name not in look, f"{name} said twice in {words!r}"
        look[name] = {"size": SIZE, "texture": TEXTURE, "colour": COLOUR}[name][word]
    return look


def fits(thing, look: dict[str, str]) -> bool:
    return all(getattr(thing, name) == value for name, value in look.items())


@pytest.fixture
def strict() -> Reader:
    return Reader(generous=False)


@pytest.fixture
def generous() -> Reader:
    return Reader(generous=True)
