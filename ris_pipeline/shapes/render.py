"""Drawing of the generated data set: textured shapes on textured backgrounds, with the exact mask of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ris_pipeline.arrays import Pixels

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
COLOURS = {
    "red": (205, 45, 40),
    "green": (50, 160, 70),
    "blue": (45, 85, 205),
    "yellow": (235, 205, 50),
    "purple": (140, 60, 170),
    "orange": (240, 135, 35),
    "white": (240, 240, 240),
    "black": (28, 28, 32),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "big")

_SUBPIXEL_BITS = 4  # cv2's fixed-point coordinates: edges land between pixels, not on them


@dataclass(frozen=True, slots=True)
class Thing:
    """An object: its looks and its place.

    cx, cy: centre as a fraction of the image's width and height. side: diameter as a fraction of the
    shorter image side. angle: radians, anticlockwise. colour_shift: added to the named colour's RGB.
    """

    shape: str
    colour: str
    texture: str
    size: str
    cx: float
    cy: float
    side: float
    angle: float
    colour_shift: tuple[int, int, int] = (0, 0, 0)

    def mirrored(self) -> Thing:
        """Return the same object in the picture's left-right mirror image."""
        return replace(self, cx=1.0 - self.cx, angle=-self.angle)

    def upside_down(self) -> Thing:
        """Return the same object at the height it has in the picture turned upside down; itself not turned."""
        return replace(self, cy=1.0 - self.cy)


def _outline(shape: str) -> list[NDArray[np.float64]]:
    """Return the shape's contours, (n, 2) xy in [-1, 1] with y down; a second contour is a hole."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    if shape == "circle":
        return [circle]
    if shape == "ring":
        return [circle, 0.52 * circle]
    if shape == "square":
        return [0.86 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)]
    if shape == "diamond":
        return [np.array([[0, -1], [0.66, 0], [0, 1], [-0.66, 0]], float)]
    if shape == "triangle":
        return [np.array([[0, -0.95], [0.98, 0.8], [-0.98, 0.8]], float)]
    if shape == "cross":
        a = 0.34
        quarter = np.array([[a, -1], [a, -a], [1, -a]], float)
        points = [quarter]
        for _ in range(3):
            points.append(points[-1] @ np.array([[0, 1], [-1, 0]]))
        return [np.concatenate(points)]
    if shape == "star":
        radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        spoke = np.arange(10) * np.pi / 5 - np.pi / 2
        return [np.stack([radius * np.cos(spoke), radius * np.sin(spoke)], 1)]
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return [np.stack([x, -y - 2.5], 1) / 16.0]
    raise ValueError(f"unknown shape {shape!r}")


_OUTLINES = {shape: _outline(shape) for shape in SHAPES}


def compute_alpha(thing: Thing, hw: tuple[int, int]) -> Pixels:
    """Return the thing's coverage of each pixel, uint8 (H, W), 255 inside, edges between."""
    h, w = hw
    half = 0.5 * thing.side * min(h, w)
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    centre = np.array([thing.cx * w, thing.cy * h])
    contours = [
        np.round((outline @ turn.T * half + centre) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        for outline in _OUTLINES[thing.shape]
    ]
    alpha = np.zeros(hw, np.uint8)
    cv2.fillPoly(alpha, contours, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return alpha


def _compute_weave(thing: Thing, yx: tuple[NDArray[np.float32], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return how much of the second colour each pixel takes, float32 in [0, 1]; yx in units of the half side."""
    cos, sin = np.float32(np.cos(thing.angle + 0.6)), np.float32(np.sin(thing.angle + 0.6))
    y, x = yx
    u, v = (cos * x + sin * y) * np.float32(2.6 * np.pi), (cos * y - sin * x) * np.float32(2.6 * np.pi)
    if thing.texture == "striped":
        return _clip(0.5 + np.float32(2.0) * np.sin(u))
    if thing.texture == "checkered":
        return _clip(0.5 + 3.0 * np.sin(0.9 * u) * np.sin(0.9 * v))
    if thing.texture == "dotted":
        return _clip(2.5 * (np.cos(1.3 * u) + np.cos(1.3 * v) - 0.75))
    return np.zeros_like(u)


def _clip(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.clip(values, 0, 1), np.float32)


def _second_colour(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a darker partner of a light colour, a lighter one of a dark colour: RGB float32 in [0, 255]."""
    is_dark = float(colour @ np.array([0.3, 0.59, 0.11], np.float32)) < 70
    return 0.45 * colour + (110 if is_dark else 0)


def draw_thing(image: NDArray[np.float32], thing: Thing) -> Pixels:
    """Paint the thing into image, float32 (H, W, 3) in [0, 255], in place; return its alpha, uint8 (H, W)."""
    h, w = image.shape[:2]
    alpha = compute_alpha(thing, (h, w))
    half = 0.5 * thing.side * min(h, w)
    reach = 1.3 * half  # a triangle's corners lie 1.27 from its centre
    x0, x1 = max(int(thing.cx * w - reach) - 1, 0), min(int(thing.cx * w + reach) + 2, w)
    y0, y1 = max(int(thing.cy * h - reach) - 1, 0), min(int(thing.cy * h + reach) + 2, h)
    y = (np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(thing.cy * h)) / np.float32(half)
    x = (np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(thing.cx * w)) / np.float32(half)
    weave = _compute_weave(thing, (y, x))[..., None]
    colour = np.clip(np.array(COLOURS[thing.colour], np.float32) + np.array(thing.colour_shift), 0, 255)
    colour = colour.astype(np.float32)
    shade = (1.0 - 0.12 * (x + y))[..., None]  # lit from the upper left
    paint = (colour * (1 - weave) + _second_colour(colour) * weave) * shade
    cover = alpha[y0:y1, x0:x1, None].astype(np.float32) / 255
    patch = image[y0:y1, x0:x1]
    patch += cover * (paint - patch)
    return alpha


def draw_background(hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a textured, muted background, float32 (H, W, 3) in [0, 255]."""
    h, w = hw
    base = rng.uniform(85, 165) + rng.uniform(-16, 16, 3)
    coarse = int(rng.integers(2, 9))
    cloud = rng.normal(0, rng.uniform(4, 22), (coarse, coarse, 1)) + rng.normal(0, 5, (coarse, coarse, 3))
    image = cv2.resize(cloud.astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    image += base.astype(np.float32)
    if rng.random() < 0.4:  # planks, waves or bricks: long straight lines that are no object
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.25) * min(h, w)
        y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None, :]
        wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period))
        image += (rng.uniform(3, 12) * wave)[..., None].astype(np.float32)
    image += rng.integers(-8, 9, (h, w, 1), dtype=np.int16)
    return np.asarray(image, np.float32)


def render(
    things: list[Thing] | tuple[Thing, ...],
    background: NDArray[np.float32],
) -> tuple[Pixels, NDArray[np.bool_], NDArray[np.float64]]:
    """Return the picture, each thing's visible mask, and the share of it that is visible.

    Later things cover earlier ones. Their types: uint8 (H, W, 3) RGB, bool (n, H, W), float64 (n,) in [0, 1].
    """
    image = background.copy()
    alphas = [draw_thing(image, thing) for thing in things]
    masks = np.zeros((len(things), *background.shape[:2]), bool)
    visible = np.zeros(len(things))
    covered = np.zeros(background.shape[:2], bool)
    for i in reversed(range(len(things))):
        whole = alphas[i] > 127
        masks[i] = whole & ~covered
        visible[i] = masks[i].sum() / max(int(whole.sum()), 1)
        covered |= whole
    return np.clip(image, 0, 255).astype(np.uint8), masks, visible
