"""The window search against sorting all distances, on grids that follow the points and grids that do not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import neighbours, windows
from tests.budget import largest_intermediate

GRID = (20, 26)
ROWS = 544
K = 12

SEARCH = jax.jit(windows.nearest_on_grid, static_argnames=("k", "grid_hw", "half_width"))
WINDOWS = jax.jit(windows.search_windows, static_argnames=("k", "grid_hw", "half_width"))


def scan(seed: int = 0, *, keep: float = 0.9, step: float = 0.02):
    """A pinhole camera's view of a rough wall with a step in depth and missing pixels, padded to ROWS."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[: GRID[0], : GRID[1]].reshape(2, -1)
    z = 0.4 + rng.normal(0, 5e-4, row.size) + step * (column > GRID[1] // 2)
    points = np.stack([(column - 13) * z / 400, (row - 10) * z / 400, z], axis=1)
    kept = np.flatnonzero(rng.uniform(size=row.size) < keep)
    return pad(points[kept], kept)


def pad(points, pixel):
    count = len(points)
    full = np.zeros((ROWS, 3), np.float32)
    full[:count] = points
    pixels = np.zeros(ROWS, np.int32)
    pixels[:count] = pixel
    return jnp.asarray(full), jnp.asarray(np.arange(ROWS) < count), jnp.asarray(pixels)


def sorted_distances(points, valid, radius=np.inf, k=K):
    """Float32, as the search computes them, so that ties are ties."""
    points, valid = np.asarray(points), np.asarray(valid)
    dx, dy, dz = ((points[:, None, a] - points[None, :, a]) ** 2 for a in range(3))
    squared = np.where(valid[None, :], dx + dy + dz, np.float32(np.inf))
    squared = np.where(squared <= np.float32(radius) ** 2, squared, np.float32(np.inf))
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return order, np.sqrt(np.take_along_axis(squared, order, axis=1))


def check(points, valid, pixel, radius=np.inf, **options):
    index, distance = SEARCH(
        points, valid, pixel, k=K, grid_hw=GRID, radius=None if np.isinf(radius) else radius, **options
    )
    order, truth = sorted_distances(points, valid, radius)
    rows = np.asarray(valid)
    assert index.dtype == jnp.int32
    np.testing.assert_allclose(np.asarray(distance)[rows], truth[rows], rtol=1e-6)
    found = np.isfinite(truth[rows])
    # The compiler may fuse the squares differently, so near-ties may change places.
    far = np.linalg.norm(
        np.asarray(points)[rows][:, None] - np.asarray(points)[np.asarray(index)[rows]], axis=2
    )
    np.testing.assert_allclose(far[found], truth[rows][found], rtol=1e-5, atol=1e-9)
    same = np.asarray(index)[rows][found] == order[rows][found]
    assert same.sum() >= 0.99 * same.size
    first = np.broadcast_to(np.asarray(index)[rows][:, :1], found.shape)
    np.testing.assert_array_equal(np.asarray(index)[rows][~found], first[~found])


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.0), st.floats(-0.1, 0.1))
def test_equals_sorting(seed, keep, step):
    check(*scan(seed, keep=keep, step=step))


def test_most_windows_prove_themselves():
    """Else the search is right but slow."""
    points, valid, pixel = scan(keep=1.0)
    _, _, proven = WINDOWS(points, valid, pixel, k=K, grid_hw=GRID, radius=None, half_width=4)
    assert np.mean(np.asarray(proven)[np.asarray(valid)]) > 0.9
    assert not np.asarray(proven)[~np.asarray(valid)].any()


def test_what_is_proven_is_true():
    points, valid, pixel = scan(3, keep=0.35)
    squared, _, proven = WINDOWS(points, valid, pixel, k=K, grid_hw=GRID, radius=None, half_width=4)
    proven = np.asarray(proven)
    assert 0.1 < proven[np.asarray(valid)].mean() < 0.95
    _, truth = sorted_distances(points, valid)
    np.testing.assert_allclose(np.sqrt(squared)[proven], truth[proven], rtol=1e-6)


@pytest.mark.parametrize("turn", ["180", "90", "mirror"])
def test_the_axes_of_the_camera_may_point_anywhere(turn):
    points, valid, pixel = scan(keep=1.0)
    x, y, z = points.T
    turned = {"180": (-x, -y, z), "90": (y, -x, z), "mirror": (-x, y, z)}[turn]
    points = jnp.stack(turned, axis=1)
    _, _, proven = WINDOWS(points, valid, pixel, k=K, grid_hw=GRID, radius=None, half_width=4)
    assert np.mean(np.asarray(proven)[np.asarray(valid)]) > 0.9
    check(points, valid, pixel)


def test_a_grid_that_does_not_follow_the_points():
    points, valid, pixel = scan()
    count = int(valid.sum())
    shuffled = np.asarray(pixel).copy()
    shuffled[:count] = np.random.default_rng(0).permutation(shuffled[:count])
    check(points, valid, jnp.asarray(shuffled))


def test_two_points_at_one_pixel():
    points, valid, pixel = scan()
    check(points, valid, pixel.at[7].set(pixel[8]))


@pytest.mark.parametrize("shift", [0.4, 1.0])
def test_points_beside_or_behind_the_camera(shift):
    points, valid, pixel = scan()
    check(jnp.where(valid[:, None], points - jnp.array([[0.0, 0.0, shift]]), 0), valid, pixel)


@pytest.mark.parametrize("radius", [0.0, 5e-4, 0.0025, 0.03])
def test_radius(radius):
    check(*scan(), radius=radius)


def test_coincident_points_keep_the_order_of_the_rows():
    points = np.tile(np.array([[0.01, 0.02, 0.4]]), (60, 1))
    index, distance = SEARCH(*pad(points, np.arange(60)), k=K, grid_hw=GRID, radius=None)
    np.testing.assert_array_equal(np.asarray(index)[:60], np.tile(np.arange(K), (60, 1)))
    assert not np.asarray(distance)[:60].any()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_fewer_points_than_neighbours(count):
    check(*pad(np.array([[0.001 * i, 0.0, 0.4] for i in range(count)]).reshape(-1, 3), np.arange(count)))


def test_same_as_the_general_search_to_the_bit():
    points, valid, pixel = scan(5)
    index, distance = SEARCH(points, valid, pixel, k=K, grid_hw=GRID, radius=0.01)
    other_index, other = jax.jit(neighbours.nearest, static_argnames="k")(
        points, points, valid, k=K, radius=0.01, query_valid=valid
    )
    np.testing.assert_array_equal(index, other_index)
    np.testing.assert_array_equal(distance, other)


def test_not_jitted():
    options = {"grid_hw": GRID, "radius": None, "half_width": 4}
    for eager, jitted in zip(
        windows.search_windows(*scan(5), K, **options), WINDOWS(*scan(5), k=K, **options), strict=True
    ):
        np.testing.assert_allclose(eager, jitted, rtol=1e-6)


def test_memory_holds_the_windows_of_one_block():
    """8,192 points, 100 neighbours: nothing is larger than their (padded) list (all windows are 14 MB)."""
    points = jax.ShapeDtypeStruct((8192, 3), np.float32)
    valid, pixel = jax.ShapeDtypeStruct((8192,), np.bool_), jax.ShapeDtypeStruct((8192,), np.int32)
    search = functools.partial(windows.search_windows, k=100, grid_hw=(224, 224), radius=0.01, half_width=10)
    assert largest_intermediate(jax.make_jaxpr(search)(points, valid, pixel).jaxpr) <= 8192 * 100 * 4
