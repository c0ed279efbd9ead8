import numpy as np
import pytest
from scipy import ndimage

from ris_pipeline.shapes.render import (
    COLOURS,
    SHAPES,
    TEXTURES,
    Thing,
    compute_alpha,
    draw_background,
    draw_thing,
    render,
)

GREY = np.full((100, 100, 3), 128, np.float32)
SIDE_OF_40 = 40 / 86  # a square of this side, unturned, is 40 pixels wide in a picture of 100 (0.86 of the diameter)


def thing(shape="square", colour="red", texture="plain", cx=0.5, cy=0.5, side=SIDE_OF_40, angle=0.0):
    return Thing(shape, colour, texture, "small", cx, cy, side, angle)


def test_a_square_covers_its_pixels():
    mask = compute_alpha(thing(), (100, 100)) > 127
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    for first, last in ((rows[0], rows[-1]), (columns[0], columns[-1])):
        assert abs(first - 30) <= 1
        assert abs(last - 70) <= 1
    assert mask[31:70, 31:70].all()


def test_side_is_a_share_of_the_shorter_side_and_place_of_both():
    mask = compute_alpha(thing("circle", side=0.5, cx=0.25, cy=0.75), (40, 200)) > 127
    y, x = np.nonzero(mask)
    assert y.mean() == pytest.approx(30, abs=0.6)
    assert x.mean() == pytest.approx(50, abs=0.6)
    assert np.ptp(x) + 1 == pytest.approx(20, abs=2)
    assert mask.sum() == pytest.approx(np.pi * 10**2, rel=0.1)


def test_edges_are_smooth_and_only_edges():
    alpha = compute_alpha(thing("circle", side=0.6), (100, 100))
    y, x = np.mgrid[:100, :100]
    radius = np.hypot(y - 50, x - 50)
    assert np.all(alpha[radius < 28.5] == 255)
    assert np.all(alpha[radius > 31.5] == 0)
    between = (alpha > 0) & (alpha < 255)
    assert between.sum() > 100  # the rim is 188 pixels long


@pytest.mark.parametrize("angle", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_in_one_piece_and_only_the_ring_has_a_hole(shape, angle):
    mask = compute_alpha(thing(shape, side=0.6, angle=angle), (100, 100)) > 127
    assert ndimage.label(mask)[1] == 1
    assert ndimage.label(~mask)[1] == (2 if shape == "ring" else 1)
    assert mask[50, 50] == (shape != "ring")


def test_the_rings_hole_is_the_background():
    image, masks, _ = render([thing("ring", side=0.6)], GREY)
    y, x = np.mgrid[:100, :100]
    hole = np.hypot(y - 50, x - 50) < 0.52 * 30 - 2
    assert not masks[0][hole].any()
    assert (image[hole] == 128).all()


@pytest.mark.parametrize("angle", np.linspace(-0.3, 0.3, 5))
@pytest.mark.parametrize("shape", SHAPES)
def test_all_of_the_mask_is_painted_and_nothing_else(shape, angle):
    image = GREY.copy()
    alpha = draw_thing(image, thing(shape, side=0.6, angle=angle))
    painted = (image != GREY).any(axis=2)
    np.testing.assert_array_equal(painted, alpha > 0)


@pytest.mark.parametrize("colour", COLOURS)
def test_plain_things_have_their_colour(colour):
    """Light falls from the upper left: at most 12 % a half side, so 24 % in a corner of the square at 0.86."""
    image, masks, _ = render([thing(colour=colour)], GREY)
    eroded = ndimage.binary_erosion(masks[0], iterations=2)  # without the smooth rim
    pixels = image[eroded].astype(float)
    expected = np.array(COLOURS[colour], float)
    np.testing.assert_allclose(image[50, 50], expected, atol=2)
    assert np.all(pixels >= 0.79 * expected - 1)
    assert np.all(pixels <= np.minimum(1.21 * expected, 255) + 1)
    assert image[35, 35].astype(int).sum() > image[65, 65].astype(int).sum()


def test_colour_shift_is_added_and_held_inside_the_range():
    shifted = Thing("square", "white", "plain", "small", 0.5, 0.5, SIDE_OF_40, 0.0, (14, -14, 14))
    image, _, _ = render([shifted], GREY)
    np.testing.assert_allclose(image[50, 50], [254, 226, 254], atol=2)


@pytest.mark.parametrize("colour", ["yellow", "black"])
@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_mix_two_colours(texture, colour):
    image, masks, _ = render([thing("circle", colour, texture, side=0.8)], GREY)
    inner = image[ndimage.binary_erosion(masks[0], iterations=2)].astype(float) @ [0.3, 0.59, 0.11]
    own = np.array(COLOURS[colour]) @ [0.3, 0.59, 0.11]
    partner = 0.45 * own + (110 if colour == "black" else 0)
    near_own, near_partner = (np.mean(np.abs(inner - level) < 0.3 * abs(own - partner)) for level in (own, partner))
    if texture == "plain":
        assert near_partner == 0
    else:
        assert near_own > 0.15
        assert near_partner > 0.05


def test_masks_are_disjoint_and_the_later_thing_lies_on_top():
    """Two squares of 40, the second 20 to the right: it hides half of the first."""
    below, above = thing(cx=0.4), thing(colour="blue", cx=0.6)
    image, masks, visible = render([below, above], GREY)
    assert not (masks[0] & masks[1]).any()
    assert visible[0] == pytest.approx(0.5, abs=0.04)
    assert visible[1] == 1
    assert masks[0].sum() == pytest.approx(20 * 40, rel=0.08)
    np.testing.assert_array_equal(masks[1], compute_alpha(above, (100, 100)) > 127)
    np.testing.assert_array_equal(masks[0] | masks[1], (compute_alpha(below, (100, 100)) > 127) | masks[1])
    assert image[50, 55, 2] > image[50, 55, 0]  # blue where both are
    assert image[50, 25, 0] > image[50, 25, 2]


def test_a_thing_under_two_others():
    """40 wide from 30 to 70; the others hide its left and its right quarter."""
    _, masks, visible = render([thing(), thing(cx=0.2), thing(cx=0.8)], GREY)
    assert visible[0] == pytest.approx(0.5, abs=0.05)
    assert masks.sum(axis=0).max() == 1


def test_a_hidden_thing_is_not_visible():
    _, masks, visible = render([thing(side=0.2), thing(side=0.6)], GREY)
    assert visible.tolist() == [0, 1]
    assert not masks[0].any()


def test_render_leaves_the_background_alone():
    background = draw_background((60, 80), np.random.default_rng(0))
    before = background.copy()
    image, masks, _ = render([thing()], background)
    np.testing.assert_array_equal(background, before)
    assert image.shape == (60, 80, 3)
    assert image.dtype == np.uint8
    assert masks.shape == (1, 60, 80)
    assert masks.dtype == bool
    outside = compute_alpha(thing(), (60, 80)) == 0
    np.testing.assert_array_equal(image[outside], np.clip(before, 0, 255).astype(np.uint8)[outside])


def test_backgrounds_are_muted():
    for seed in range(20):
        background = draw_background((40, 50), np.random.default_rng(seed))
        assert background.shape == (40, 50, 3)
        mean = background.mean(axis=(0, 1))
        assert np.ptp(mean) < 50  # no colour that a thing is named by
        assert 40 < mean.mean() < 210


@pytest.mark.parametrize("shape", SHAPES)
def test_mirrored_is_the_picture_mirrored(shape):
    original = thing(shape, cx=0.3, side=0.5, angle=0.25)
    mirrored = compute_alpha(original.mirrored(), (100, 100)) > 127
    # Centres are counted in whole pixels from the left, 70 for 30: the mirror image of column 30 is 69.
    flipped = np.roll(compute_alpha(original, (100, 100))[:, ::-1], 1, axis=1) > 127
    assert (mirrored & flipped).sum() > 0.96 * (mirrored | flipped).sum()


def test_upside_down_moves_the_thing_and_does_not_turn_it():
    original = thing("triangle", cy=0.3)
    moved = compute_alpha(original.upside_down(), (100, 100))
    np.testing.assert_array_equal(moved, np.roll(compute_alpha(original, (100, 100)), 40, axis=0))
