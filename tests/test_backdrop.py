"""The object of a photograph: made pictures whose object is known to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscjax.preprocess import backdrop, window

HW = (120, 150)
PLACE = (40, 75, 50, 110)  # top, bottom, left, right of the object
DARK, BRIGHT = (6, 7, 9), (240, 238, 235)


def box(place=PLACE, hw=HW) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[place[0] : place[1], place[2] : place[3]] = True
    return mask


def picture(mask, ground=DARK, part=(150, 150, 150), *, light: np.ndarray | float = 0.0, noise=0.0, seed=0):
    """(H, W, 3) uint8: a part on a ground, both with as many levels of ``light`` added, and sensor noise."""
    levels = np.where(mask[..., None], np.asarray(part, float), np.asarray(ground, float))
    levels = levels + np.broadcast_to(light, mask.shape)[..., None]
    levels = levels + np.random.default_rng(seed).normal(0, noise, levels.shape)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def found(rgb) -> np.ndarray:
    mask = backdrop.object_mask(rgb)
    assert mask is not None
    assert mask.shape == rgb.shape[:2]
    assert mask.dtype == bool
    return mask


def axes(hw=HW) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(-1, 1, hw[0])[:, None], np.linspace(-1, 1, hw[1])[None, :]


@pytest.mark.parametrize(
    ("ground", "part"),
    [
        (DARK, (150, 150, 150)),
        (BRIGHT, (30, 30, 30)),
        ((90, 90, 90), (90, 90, 120)),  # by its colour alone
        ((255, 255, 255), (235, 255, 255)),
        ((0, 0, 0), (0, 14, 0)),
    ],
)
def test_the_object_is_what_differs(ground, part):
    truth = box()
    mask = found(picture(truth, ground, part))
    assert window.extent(mask) == PLACE
    wrong = np.argwhere(mask != truth)
    corners = {(y, x) for y in (40, 74) for x in (50, 109)}
    assert {(int(y), int(x)) for y, x in wrong} <= corners  # which a median rounds


@pytest.mark.parametrize(
    ("ground", "part"), [((60, 60, 65), (160, 150, 140)), ((200, 200, 200), (40, 40, 40))]
)
@pytest.mark.parametrize("kind", ["side", "corner", "lens", "both"])
def test_uneven_light_is_not_an_object(ground, part, kind):
    y, x = axes()
    light = {
        "side": 30 * x + 0 * y,
        "corner": 20 * x - 20 * y,
        "lens": -14 * (x * x + y * y),
        "both": 20 * x - 10 * (x * x + y * y) + 6 * x * y,
    }[kind]
    assert window.extent(found(picture(box(), ground, part, light=light))) == PLACE
    assert not found(picture(np.zeros(HW, bool), ground, light=light)).any()


@pytest.mark.parametrize("level", [120, 200, 235])
@pytest.mark.parametrize("hw", [(240, 320), (200, 200)])
def test_a_lens_that_darkens_the_corners_is_not_an_object(hw, level):
    """By the fourth power of the cosine, which no quadratic surface follows, and 30 % in the corners."""
    far = sum(each**2 * side**2 for each, side in zip(axes(hw), hw, strict=True)) / (hw[0] ** 2 + hw[1] ** 2)
    light = level * (1 + (0.7**-0.5 - 1) * far) ** -2 - level
    part = (90, 150, 130, 190)
    assert not found(picture(np.zeros(hw, bool), (level,) * 3, light=light)).any()
    assert window.extent(found(picture(box(part, hw), (level,) * 3, (30, 30, 30), light=light))) == part


SIDES = {"top": np.s_[:1], "bottom": np.s_[-1:], "left": np.s_[:, :1], "right": np.s_[:, -1:]}


@pytest.mark.parametrize("part", [None, (60, 130, 90, 170), (0, 60, 90, 170), (150, 240, 250, 320)])
@pytest.mark.parametrize(
    "sides",
    [[side] for side in SIDES] + [["top", "left"], ["bottom", "right"], ["top", "bottom"], [*SIDES]],
    ids="+".join,
)
def test_a_black_edge_is_not_an_object(sides, part):
    """Not even where it touches one that reaches over the border."""
    hw = (240, 320)
    truth = np.zeros(hw, bool) if part is None else box(part, hw)
    rgb = picture(truth, (200, 200, 200), (60, 60, 60))
    for side in sides:
        rgb[SIDES[side]] = 0
    assert window.extent(found(rgb)) == part


def test_two_black_rows_are_not_an_object_and_three_are():
    for rows, extent in ((2, None), (3, (0, 3, 0, 400))):
        rgb = picture(np.zeros((400, 400), bool), (200, 200, 200))
        rgb[:rows] = 0
        assert window.extent(found(rgb)) == extent


@pytest.mark.parametrize("seed", range(4))
def test_sensor_noise_is_not_an_object(seed):
    mask = found(picture(box(), (60, 60, 60), (150, 150, 150), noise=6.0, seed=seed))
    extent = window.extent(mask)
    assert extent is not None
    assert np.abs(np.subtract(extent, PLACE)).max() <= 1
    assert not found(picture(np.zeros(HW, bool), (60, 60, 60), noise=6.0, seed=seed)).any()


def test_hot_pixels_are_not_an_object():
    rgb = picture(box())
    places = np.random.default_rng(0).integers(0, HW, (40, 2))
    rgb[places[:, 0], places[:, 1]] = 255
    rgb[PLACE[0] : PLACE[1], PLACE[2] : PLACE[3]] = 150
    assert window.extent(found(rgb)) == PLACE


def textures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = axes((128, 128))
    grain = np.kron(rng.normal(120, 20, (32, 32)), np.ones((4, 4)))
    weave = 120 + 20 * np.sign(np.sin(40 * x) * np.sin(40 * y))
    wood = 120 + 25 * np.sin(30 * x + 3 * np.sin(4 * y))
    made = {"grain": grain, "weave": weave, "wood": wood, "white noise": rng.uniform(0, 255, (128, 128))}
    found = {name: np.repeat(grey[..., None], 3, axis=2) for name, grey in made.items()}
    found["one channel"] = np.stack([0 * grain + 90, grain, 0 * grain + 60], axis=-1)
    return {name: np.clip(levels, 0, 255).astype(np.uint8) for name, levels in found.items()}


@pytest.mark.parametrize("name", textures())
def test_a_texture_has_no_backdrop(name):
    assert backdrop.object_mask(textures()[name]) is None


def test_a_round_product_beyond_the_frame():
    """Four dark corners: no backdrop, or, where they are few, objects that no window leaves out."""
    y, x = axes((128, 128))
    assert backdrop.object_mask(picture(x * x + y * y < 1.35, DARK, (200, 200, 200))) is None
    small = found(picture(x * x + y * y < 1.7, DARK, (200, 200, 200)))
    assert window.extent(small) == (0, 128, 0, 128)


@pytest.mark.parametrize(
    "place",
    [(30, 90, 0, 60), (0, 30, 20, 110), (70, 120, 40, 110), (40, 90, 90, 150), (0, 40, 0, 50)],
    ids=["left", "top", "bottom", "right", "corner"],
)
@pytest.mark.parametrize(
    ("ground", "part"),
    [(DARK, (150, 150, 150)), (BRIGHT, (90, 100, 110)), (DARK, (22, 23, 25)), (BRIGHT, (215, 214, 210))],
)
def test_an_object_may_reach_over_the_border(place, ground, part):
    """It covers up to a sixth of the border, and the surface that is fitted there does not follow it."""
    y, x = axes()
    truth = box(place)
    assert 0.05 < np.r_[truth[0], truth[-1], truth[:, 0], truth[:, -1]].mean() < 0.18
    assert window.extent(found(picture(truth, ground, part, light=4 * x + 3 * y))) == place


def test_a_web_across_the_whole_picture():
    """Two sides of the border hold nothing but the web: nothing there tells how the light bends downwards."""
    place = (2, 78, 0, 400)
    assert window.extent(found(picture(box(place, (80, 400)), BRIGHT, (60, 60, 60)))) == place


def test_too_much_of_the_border_covered():
    assert backdrop.object_mask(picture(box((0, 120, 0, 60)))) is None


def test_dust_goes_and_debris_stays():
    hw = (200, 200)
    dust, debris = (20, 24, 20, 24), (150, 160, 170, 178)  # 0.04 % and 0.2 % of the picture
    part = box((80, 120, 70, 130), hw)
    rgb = picture(part | box(dust, hw))
    assert window.extent(found(rgb)) == (80, 120, 70, 130)
    rgb = picture(part | box(debris, hw) | box(dust, hw))
    assert window.extent(found(rgb)) == (80, 160, 70, 178)


@pytest.mark.parametrize(("contrast", "seen"), [(-12, True), (-9, False), (0, False), (9, False), (12, True)])
def test_the_least_contrast(contrast, seen):
    level = 100 + contrast
    assert found(picture(box(), (100, 100, 100), (level, level, level))).any() == seen


def test_the_least_contrast_grows_with_the_grain_of_the_backdrop():
    """Grain of 3 levels, 2×2 pixels wide so that it passes the median: 15 levels are noise, 40 are not."""
    rng = np.random.default_rng(0)
    grain = np.kron(rng.normal(0, 3.0, (60, 75)), np.ones((2, 2)))
    for contrast, seen in ((0, False), (11, False), (40, True)):
        level = 100 + contrast
        mask = found(picture(box(), (100, 100, 100), (level, level, level), light=grain))
        assert mask[box()].mean() > 0.95 if seen else mask.mean() < 0.01


def test_nothing_but_backdrop_is_an_empty_mask():
    assert not found(picture(np.zeros(HW, bool))).any()
    assert not found(np.zeros((16, 16, 3), np.uint8)).any()


@pytest.mark.parametrize("hw", [(1, 1), (8, 8), (3, 100)])
def test_a_picture_without_a_middle(hw):
    assert backdrop.object_mask(np.zeros((*hw, 3), np.uint8)) is None


def test_it_depends_on_the_picture_alone():
    y, x = axes()
    rgb = picture(box(), (60, 60, 60), (150, 140, 90), light=10 * x - 5 * y, noise=2.0)
    before = rgb.copy()
    rgb.setflags(write=False)
    mask = found(rgb)
    np.testing.assert_array_equal(rgb, before)
    for same in (rgb.copy(), np.asfortranarray(rgb), rgb[:, :, ::-1]):
        np.testing.assert_array_equal(found(same), mask)
    np.testing.assert_array_equal(found(rgb[::-1, ::-1])[::-1, ::-1], mask)
    np.testing.assert_array_equal(found(np.swapaxes(rgb, 0, 1)).T, mask)


def test_the_surface_is_that_of_the_light():
    y, x = axes()
    light = 100 + 20 * x - 8 * y - 9 * x * x - 6 * y * y + 5 * x * y
    grey = np.rint(light).astype(np.uint8)
    np.testing.assert_allclose(backdrop._surface(grey, 2), light, atol=0.6)
    grey[box((30, 90, 0, 60))] = 220  # over the border
    np.testing.assert_allclose(backdrop._surface(grey, 2), light, atol=2.0)


@given(st.integers(-34, 38), st.integers(-44, 34), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_shifting_the_object_shifts_its_extent(down, across, part):
    colour = [(150, 150, 150), (40, 90, 200), (62, 60, 90), (200, 10, 10)][part]
    moved = (PLACE[0] + down, PLACE[1] + down, PLACE[2] + across, PLACE[3] + across)
    assert window.extent(found(picture(box(moved), (60, 60, 60), colour))) == moved
