import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from muscjax import maps
from muscjax.config import MapConfig
from muscjax.errors import InputError
from muscjax.types import Frame
from tests.budget import largest_intermediate
from tests.reference import maps as reference

SEEDS = st.integers(0, 10_000)
EITHER_WAY = pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])

_interpolate = jax.jit(maps.interpolate_points, static_argnames="neighbours")
_blur = jax.jit(maps.blur, static_argnames="form")
_upsample = jax.jit(maps.upsample_grid, static_argnums=1)


def surface(seed, p=60, g=20):
    """Scores, centres, their validity, points and theirs."""
    rng = np.random.default_rng(seed)
    return (
        rng.random(g).astype(np.float32),
        rng.normal(size=(g, 3)).astype(np.float32),
        rng.random(g) < 0.8,
        rng.normal(size=(p, 3)).astype(np.float32),
        rng.random(p) < 0.9,
    )


# --- pixels and patches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_hw", "grid_hw"), [((12, 20), (3, 5)), ((7, 11), (3, 4)), ((5, 4), (5, 4)), ((3, 3), (1, 2))]
)
def test_patch_of_pixel(image_hw, grid_hw):
    pixels = np.arange(image_hw[0] * image_hw[1], dtype=np.int32)
    found = maps.patch_of_pixel(pixels, image_hw, grid_hw)
    assert found.dtype == jnp.int32
    assert found.tolist() == [reference.patch_of_pixel(p, image_hw, grid_hw) for p in pixels]


# --- a Gaussian around every cell ------------------------------------------------------------------------


SPREAD = functools.partial(maps.gaussian_weights, spread=0.65)


@EITHER_WAY
@pytest.mark.parametrize(("shape", "hw"), [((4, 5), (17, 11)), ((1, 3), (6, 6)), ((6, 6), (3, 4))])
def test_gaussian_cells_against_loops(compiled, shape, hw):
    grid = np.random.default_rng(3).random(shape).astype(np.float32)
    upsample = functools.partial(maps.upsample_grid, hw=hw, weights=SPREAD)
    found = (jax.jit(upsample) if compiled else upsample)(grid)
    np.testing.assert_allclose(found, reference.gaussian_grid(grid, hw, 0.65), atol=1e-5, rtol=0)


@given(SEEDS)
def test_gaussian_cells_stay_between_the_lowest_and_the_highest(seed):
    rng = np.random.default_rng(seed)
    size, n = int(rng.integers(1, 40)), int(rng.integers(1, 20))
    weights = maps.gaussian_weights(size, n, spread=float(rng.uniform(0.2, 3)))
    assert weights.shape == (size, n)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)  # no side is preferred


def test_a_cell_alone_is_highest_at_its_own_middle():
    grid = np.zeros((8, 8), np.float32)
    grid[2, 5] = 1
    found = np.asarray(maps.upsample_grid(grid, (64, 64), weights=SPREAD))
    peak = np.argwhere(found > 0.999 * found.max())
    np.testing.assert_allclose(peak.mean(axis=0), [2.5 * 8 - 0.5, 5.5 * 8 - 0.5])


def test_weights_by_configuration():
    assert maps.axis_weights(MapConfig()) is maps.corner_weights
    given_weights = maps.axis_weights(MapConfig(cells="gaussian", spread=0.65))(20, 7)
    np.testing.assert_array_equal(given_weights, SPREAD(20, 7))


# --- the bricks of a quincunx -----------------------------------------------------------------------------


@EITHER_WAY
@pytest.mark.parametrize(("shape", "hw"), [((4, 3), (17, 11)), ((8, 4), (64, 64)), ((6, 2), (5, 3))])
@pytest.mark.parametrize("spread", [0.1, 0.65, 2.0])
def test_bricks_against_loops(compiled, shape, hw, spread):
    grid = np.random.default_rng(4).random(shape).astype(np.float32)
    spread_out = functools.partial(maps.upsample_bricks, hw=hw, spread=spread)
    found = (jax.jit(spread_out) if compiled else spread_out)(grid)
    np.testing.assert_allclose(found, reference.brick_grid(grid, hw, spread), atol=1e-5, rtol=0)


def test_a_brick_alone_is_highest_at_its_patch():
    for row, left in ((2, 0.0), (3, 0.5)):  # odd rows lie half a cell further right
        grid = np.zeros((8, 4), np.float32)
        grid[row, 1] = 1
        found = np.asarray(maps.upsample_bricks(grid, (64, 64), spread=0.65))
        peak = np.argwhere(found > 0.999 * found.max())
        middle = [(row + 0.5) * 8 - 0.5, (1 + left) * 16 + 4 - 0.5]
        np.testing.assert_allclose(peak.mean(axis=0), middle, atol=0.6)


def test_equal_bricks_give_a_flat_map():
    flat = maps.upsample_bricks(np.full((6, 3), 0.25, np.float32), (30, 31), spread=0.3)
    np.testing.assert_allclose(flat, 0.25, rtol=1e-6)


@given(SEEDS)
def test_the_shares_of_a_pixel_make_its_value(seed):
    rng = np.random.default_rng(seed)
    grid = rng.random((2 * int(rng.integers(1, 5)), int(rng.integers(1, 6)))).astype(np.float32)
    hw = int(rng.integers(1, 30)), int(rng.integers(1, 30))
    at = int(rng.integers(hw[0])), int(rng.integers(hw[1]))
    for cells in ("corners", "gaussian", "bricks"):
        config = MapConfig(cells=cells, spread=float(rng.uniform(0.1, 3)))
        shares = maps.cell_shares(config, hw, grid.shape, at)
        assert shares.shape == (grid.size,)
        expected = np.asarray(maps.upsample(grid, hw, config))[at]
        np.testing.assert_allclose(shares @ grid.ravel(), expected, atol=1e-5)


# --- bilinear ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_key", "out_key"), [("bilinear_in", "bilinear_out_224"), ("bilinear_in14", "bilinear_out_112")]
)
def test_upsample_golden(golden, given_key, out_key):
    arrays = golden("interp")
    for grid, expected in zip(arrays[given_key][:, 0], arrays[out_key][:, 0], strict=True):
        np.testing.assert_allclose(_upsample(grid, expected.shape), expected, atol=3e-6, rtol=0)


@EITHER_WAY
@pytest.mark.parametrize(
    ("hw", "target"), [((4, 3), (9, 10)), ((1, 5), (4, 7)), ((3, 1), (5, 2)), ((1, 1), (3, 3)),
                       ((4, 4), (1, 6)), ((6, 5), (3, 4)), ((3, 4), (3, 4))]
)  # fmt: skip
def test_upsample_any_size(hw, target, compiled):
    grid = np.random.default_rng(0).random(hw).astype(np.float32)
    found = (_upsample if compiled else maps.upsample_grid)(grid, target)
    np.testing.assert_allclose(found, reference.upsample_grid(grid, target), atol=1e-6, rtol=0)


def test_upsample_keeps_the_corners():
    grid = np.random.default_rng(1).random((4, 5)).astype(np.float32)
    found = np.asarray(_upsample(grid, (13, 17)))
    np.testing.assert_array_equal(found[::12, ::16], grid[::3, ::4])


# --- interpolation over the surface -----------------------------------------------------------------------


def test_interpolate_golden(golden):
    arrays = golden("interp")
    everywhere = np.ones(128, bool), np.ones(1500, bool)
    found = _interpolate(
        arrays["center_scores"], arrays["centers"], everywhere[0], arrays["points"], everywhere[1]
    )
    np.testing.assert_allclose(found, arrays["interp_f64"], atol=1e-5, rtol=0)


@EITHER_WAY
def test_interpolate_reference(compiled):
    arguments = surface(0)
    found = (_interpolate if compiled else maps.interpolate_points)(*arguments)
    np.testing.assert_allclose(found, reference.interpolate_points(*arguments), atol=1e-5, rtol=0)


@given(SEEDS)
def test_interpolate_many_groups(seed):
    arguments = surface(seed, p=40, g=300)
    found = _interpolate(*arguments)
    np.testing.assert_allclose(found, reference.interpolate_points(*arguments), atol=1e-5, rtol=0)


@given(SEEDS)
def test_interpolate_ties_go_to_the_lowest_index(seed):
    """On a small integer lattice every distance is exact, and most are tied."""
    rng = np.random.default_rng(seed)
    scores, _, usable, _, valid = surface(seed, p=40, g=300)
    centers = rng.integers(0, 4, (300, 3)).astype(np.float32)
    points = rng.integers(0, 4, (40, 3)).astype(np.float32) + np.float32(0.5)
    arguments = scores, centers, usable, points, valid
    found = _interpolate(*arguments)
    np.testing.assert_allclose(found, reference.interpolate_points(*arguments), atol=1e-5, rtol=0)


@pytest.mark.parametrize("neighbours", [1, 4, 40])
def test_interpolate_other_numbers_of_neighbours(neighbours):
    arguments = surface(1)
    found = _interpolate(*arguments, neighbours=neighbours)
    expected = reference.interpolate_points(*arguments, neighbours=neighbours)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("usable", [0, 1, 2, 3])
def test_interpolate_few_valid_centers(usable):
    scores, centers, _, points, valid = surface(2)
    there = np.zeros(20, bool)
    there[[3, 8, 17][:usable]] = True
    scores[~there], centers[~there] = np.nan, np.nan
    found = _interpolate(scores, centers, there, points, valid)
    expected = reference.interpolate_points(scores, centers, there, points, valid)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@given(SEEDS)
def test_interpolate_permutation_scale_and_range(seed):
    scores, centers, usable, points, valid = surface(seed)
    plain = np.asarray(_interpolate(scores, centers, usable, points, valid))
    rng = np.random.default_rng(seed)
    first, second = rng.permutation(20), rng.permutation(60)
    shuffled = _interpolate(scores[first], centers[first], usable[first], points[second], valid[second])
    np.testing.assert_allclose(shuffled, plain[second], atol=1e-5)
    tripled = _interpolate(scores * np.float32(3), centers, usable, points, valid)
    np.testing.assert_allclose(tripled, 3 * plain, atol=1e-5)
    assert not plain[~valid].any()
    assert plain[valid].min() >= scores[usable].min() - 1e-5
    assert plain[valid].max() <= scores[usable].max() + 1e-5


def test_interpolate_padding_changes_nothing():
    scores, centers, usable, points, valid = surface(3)
    rows = np.concatenate([points, np.full((23, 3), np.nan, np.float32)])
    more = _interpolate(scores, centers, usable, rows, np.concatenate([valid, np.zeros(23, bool)]))
    np.testing.assert_allclose(more[:60], _interpolate(scores, centers, usable, points, valid), atol=1e-6)
    assert not np.asarray(more[60:]).any()


def test_interpolate_a_center_keeps_its_score():
    scores, centers, usable, _, _ = surface(4)
    found = _interpolate(scores, centers, usable, np.tile(centers, (3, 1)), np.tile(usable, 3))
    np.testing.assert_allclose(found, np.tile(np.where(usable, scores, 0), 3), atol=1e-5)


def test_interpolate_vmap():
    arguments = [np.stack(x) for x in zip(surface(5), surface(6), strict=True)]
    both = jax.jit(jax.vmap(maps.interpolate_points))(*arguments)
    for k in range(2):
        expected = reference.interpolate_points(*(x[k] for x in arguments))
        np.testing.assert_allclose(both[k], expected, atol=1e-5)


def test_interpolate_memory_does_not_grow_with_the_centers():
    p, g = 1000, 4096
    program = jax.make_jaxpr(maps.interpolate_points)(
        jnp.zeros(g), jnp.zeros((g, 3)), jnp.ones(g, bool), jnp.zeros((p, 3)), jnp.ones(p, bool)
    )
    assert largest_intermediate(program.jaxpr) <= 32 * p * 4


# --- scatter ----------------------------------------------------------------------------------------------


@EITHER_WAY
def test_scatter_to_grid(compiled):
    rng = np.random.default_rng(0)
    values = rng.normal(size=30).astype(np.float32)
    pixel = rng.integers(0, 35, 30).astype(np.int32)  # several points share a pixel
    valid = rng.random(30) < 0.7
    function = functools.partial(maps.scatter_to_grid, hw=(5, 7))
    found = (jax.jit(function) if compiled else function)(values, pixel, valid)
    np.testing.assert_array_equal(found, reference.scatter_to_grid(values, pixel, valid, (5, 7)))


# --- blur -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [112, 224])
def test_blur_golden(golden, size):
    arrays = golden("interp")
    image, expected = arrays[f"map{size}"], arrays[f"blur{size}"]
    levels = arrays[f"blur{size}_uint8_in"].astype(np.uint32)
    np.testing.assert_array_equal(jax.jit(maps.blur_uint8)(levels), arrays[f"blur{size}_uint8_out"])
    np.testing.assert_allclose(_blur(image), expected, atol=2e-7, rtol=0)
    quantum = image.max() / 255
    np.testing.assert_allclose(_blur(image, form="float"), expected, atol=1.5 * quantum, rtol=0)


@EITHER_WAY
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (23, 8)])
def test_blur_reference(shape, compiled):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    function = _blur if compiled else maps.blur
    expected = reference.blur(image.astype(np.float64), reference.box_line_float)
    np.testing.assert_allclose(function(image, form="float"), expected, atol=1e-6, rtol=0)
    levels = (image / image.max() * np.float32(255)).astype(np.uint8)
    expected = reference.blur(levels, reference.box_line_uint8) / 255 * image.max()
    np.testing.assert_allclose(function(image), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (3, 5), (7, 2), (4, 31), (40, 33)])
@pytest.mark.parametrize("kind", ["noise", "extremes"])
def test_blur_is_pillows(shape, kind):
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 256, shape) if kind == "noise" else rng.integers(0, 2, shape) * 255
    levels = levels.astype(np.uint8)
    expected = np.asarray(Image.fromarray(levels).filter(ImageFilter.GaussianBlur(4)))
    np.testing.assert_array_equal(jax.jit(maps.blur_uint8)(levels.astype(np.uint32)), expected)


def test_blur_of_full_white_does_not_wrap():
    white = np.full((20, 20), 255, np.uint32)
    np.testing.assert_array_equal(maps.blur_uint8(white), white)


@pytest.mark.parametrize("form", ["uint8", "float"])
def test_blur_of_nothing_and_of_a_constant(form):
    assert not np.asarray(_blur(np.zeros((9, 12), np.float32), form=form)).any()
    constant = np.full((9, 12), 0.3, np.float32)
    np.testing.assert_allclose(_blur(constant, form=form), constant, atol=1e-6)


def test_blur_none_changes_nothing():
    image = np.random.default_rng(2).random((9, 12)).astype(np.float32)
    np.testing.assert_array_equal(_blur(image, form="none"), image)
    with pytest.raises(InputError, match=r"^maps\.blur: found 'soft', expected one of"):
        maps.blur(image, form="soft")


@given(SEEDS, st.floats(0.0625, 100, width=32))
def test_blur_scale_and_distance_of_the_two_forms(seed, factor):
    image = np.random.default_rng(seed).random((20, 17)).astype(np.float32)
    exact = np.asarray(_blur(image, form="float"))
    scaled = _blur(image * np.float32(factor), form="float")
    np.testing.assert_allclose(scaled, exact * factor, rtol=1e-5)
    # On noise the 1.5 quanta of the recorded maps do not hold; this is the bound of truncation and rounding.
    np.testing.assert_allclose(_blur(image), exact, atol=4 * image.max() / 255)


# --- back to the source -----------------------------------------------------------------------------------

FRAMES = [
    Frame(source_hw=(10, 14), working_hw=(6, 6)),
    Frame(source_hw=(10, 14), working_hw=(6, 6), pad=(2, 2, 0, 0)),
    Frame(source_hw=(12, 9), working_hw=(5, 4), crop=(2, 1, 8, 6)),
    Frame(source_hw=(9, 12), working_hw=(6, 6), pad=(3, 2, 1, 1), crop=(1, 0, 12, 12)),
    Frame(source_hw=(6, 5), working_hw=(6, 5)),
]


@EITHER_WAY
@pytest.mark.parametrize("frame", FRAMES)
def test_to_source(frame, compiled):
    image = np.random.default_rng(0).random(frame.working_hw).astype(np.float32)
    function = jax.jit(maps.to_source, static_argnums=1) if compiled else maps.to_source
    found = function(image, frame)
    assert found.shape == frame.source_hw
    np.testing.assert_allclose(found, reference.to_source(image, frame), atol=1e-6, rtol=0)


def test_one_program_puts_back_every_window_of_a_set():
    working = np.ones((6, 7), np.float32)
    frames = [Frame(source_hw=(23, 29), working_hw=(6, 7), crop=(k, 2 * k, 11, 13)) for k in range(6)]
    before = maps._placed._cache_size()
    for frame in frames:
        np.testing.assert_allclose(
            maps.to_source(working, frame), reference.to_source(working, frame), atol=1e-6, rtol=0
        )
    assert maps._placed._cache_size() == before + 1


def test_to_source_undoes_the_way_in():
    """A plane survives padding, cropping and resizing, away from the edges of the crop."""
    ramp = np.add.outer(np.arange(40) * 0.5, np.arange(52) * 0.25).astype(np.float32)
    frame = Frame(source_hw=(40, 52), working_hw=(18, 24), pad=(6, 6, 0, 0), crop=(10, 4, 36, 48))
    padded = np.pad(ramp, ((6, 6), (0, 0)))[10:46, 4:52]
    working = np.asarray(Image.fromarray(padded).resize((24, 18), Image.Resampling.BILINEAR))
    found = np.asarray(maps.to_source(working, frame))
    np.testing.assert_allclose(found[7:36, 8:47], ramp[7:36, 8:47], atol=1e-4)
    assert not found[:4].any()
    assert not found[:, :4].any()


def test_to_source_of_a_constant_when_shrinking():
    frame = Frame(source_hw=(7, 9), working_hw=(20, 30))
    np.testing.assert_allclose(maps.to_source(np.ones((20, 30), np.float32), frame), 1, atol=1e-6)


def test_to_source_refuses_what_does_not_fit():
    frame = Frame(source_hw=(8, 8), working_hw=(4, 4), crop=(5, 0, 6, 6))
    with pytest.raises(InputError, match=r"^frame\.crop: found"):
        maps.to_source(np.zeros((4, 4), np.float32), frame)
    with pytest.raises(InputError, match=r"^map: found shape \(3, 4\)"):
        maps.to_source(np.zeros((3, 4), np.float32), frame)
