"""Eq. 10 and the organised map of an unorganised cloud, beside loops in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from muscjax import camera as cameras
from muscjax.datasets.cameras import decode_camera
from muscjax.geometry import project
from muscjax.types import Camera
from tests import layouts
from tests.conftest import shared
from tests.reference import camera as reference

TURN = ((0.8, 0.0, 0.6, 0.02), (0.0, 1.0, 0.0, -0.01), (-0.6, 0.0, 0.8, 0.5), (0.0, 0.0, 0.0, 1.0))
PROJECT = jax.jit(project, static_argnums=1)
PLAIN = Camera(90.0, 88.0, 23.5, 20.25, 48, 40)
CAMERAS = {
    "plain": PLAIN,
    "turned": dataclasses.replace(PLAIN, extrinsic=TURN),
    "barrel": dataclasses.replace(PLAIN, kappa=-0.24),
    "cushion": dataclasses.replace(PLAIN, kappa=1.5, fx=30.0, fy=31.0),
}


def cloud(seed=0, count=400):
    """Points around the view, some behind the camera, some outside of it."""
    rng = np.random.default_rng(seed)
    return rng.normal([0, 0, 0.4], [0.1, 0.1, 0.25], (count, 3)).astype(np.float32)


def exact(camera):
    """All fields as the float32 that JAX computes with."""
    fields = {name: float(np.float32(getattr(camera, name))) for name in ("fx", "fy", "cx", "cy", "kappa")}
    return dataclasses.replace(camera, **fields)


def between(points, camera):
    """Is the point at the border of two pixels, where rounding decides? (P,) bool."""
    at = [reference.project(point, camera) for point in points]
    near = [p is not None and any(abs((v + 0.5) % 1.0 - 0.5) > 0.499 for v in p) for p in at]
    return np.array(near)


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("jit", [False, True])
def test_eq_10_projection(name, jit):
    camera, points = CAMERAS[name], cloud()
    call = PROJECT if jit else project
    pixel, seen = call(jnp.asarray(points), camera)
    assert (pixel.dtype, seen.dtype) == (jnp.int32, jnp.bool_)
    expected = [reference.pixel(point, exact(camera)) for point in points]
    clear = ~between(points, camera)
    assert clear.mean() > 0.97
    np.testing.assert_array_equal(np.asarray(seen)[clear], [p is not None for p in np.array(expected)[clear]])
    assert 40 < np.asarray(seen).sum() < 390
    same = [p or 0 for p in np.array(expected)[clear]]
    np.testing.assert_array_equal(np.asarray(pixel)[clear], same)


def test_eq_10_centres_and_borders():
    """Pixel (r, c) is what its own ray meets, half a pixel around it; z = 0 and behind are not seen."""
    v, u = (part.ravel() for part in np.mgrid[:40, :48].astype(np.float32))
    for depth in (0.2, 7.0):
        for shift in (-0.49, 0.0, 0.49):
            rays = np.stack([(u + shift - 23.5) / 90, (v + shift - 20.25) / 88, np.ones_like(u)], axis=1)
            pixel, seen = PROJECT(jnp.asarray(rays * np.float32(depth)), PLAIN)
            assert np.asarray(seen).all()
            np.testing.assert_array_equal(pixel, np.arange(40 * 48))
            assert not np.asarray(PROJECT(jnp.asarray(-rays), PLAIN)[1]).any()
    odd = np.array([[0, 0, 0], [0, 0, np.nan], [np.inf, 0, 1], [9, 0, 1], [0, -9, 1]], np.float32)
    pixel, seen = PROJECT(jnp.asarray(odd), PLAIN)
    assert not np.asarray(seen).any()
    assert not np.asarray(pixel).any()


def test_batches():
    batch = jnp.asarray(np.stack([cloud(1), cloud(2)]))
    pixel, _ = jax.vmap(lambda points: PROJECT(points, PLAIN))(batch)
    np.testing.assert_array_equal(pixel[1], PROJECT(batch[1], PLAIN)[0])


@given(st.integers(0, 50), st.permutations(range(30)))
def test_the_nearest_point_of_a_pixel_stays(seed, order):
    rng = np.random.default_rng(seed)
    small = Camera(4.0, 4.0, 2.0, 2.0, 5, 5)
    points = np.column_stack([rng.uniform(-0.5, 0.5, (30, 2)), rng.choice([0.5, 0.75, 1.0], 30)])
    expected = reference.organise(points, small)
    pixel, seen = cameras.pixel_of(points, small)
    got = cameras.scatter_nearest(points[seen], pixel[seen], small.hw)
    np.testing.assert_array_equal(got, expected.astype(np.float32))
    shuffled = points[order]
    pixel, seen = cameras.pixel_of(shuffled, small)
    again = cameras.scatter_nearest(shuffled[seen], pixel[seen], small.hw)
    np.testing.assert_array_equal(again[..., 2], got[..., 2])


def test_a_dense_cloud_becomes_its_own_map():
    points, grid = layouts.seen_cloud()
    got = cameras.organise(points, PLAIN)
    np.testing.assert_array_equal(got, grid.astype(np.float32))
    turn = np.array(TURN)
    elsewhere = (points - turn[:3, 3]) @ turn[:3, :3]  # the inverse
    moved = cameras.organise(elsewhere, CAMERAS["turned"])
    np.testing.assert_allclose(moved, grid, atol=1e-7)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
def test_a_sparse_cloud_gets_a_coarser_grid_and_keeps_its_points(share):
    big = Camera(360.0, 352.0, 95.5, 82.5, 192, 160)
    rng = np.random.default_rng(0)
    v, u = rng.uniform(-0.5, [[159.5], [191.5]], (2, int(share * 160 * 192)))
    points = np.stack([(u - big.cx) / big.fx, (v - big.cy) / big.fy, np.ones_like(u)], axis=1) * 0.4
    got = cameras.organise(points, big)
    present = (got != 0).all(-1)
    assert abs(got.shape[0] * 192 - got.shape[1] * 160) <= 192  # the image's aspect ratio, to a pixel
    assert present.mean() > 0.45
    assert present.sum() > 0.5 * len(points)
    # a sample lies where the frame's rule looks for it: sample i at pixel i · pixels / samples
    rows, columns = np.nonzero(present)
    seen = got[present].astype(np.float64)
    column = seen[:, 0] / seen[:, 2] * big.fx + big.cx
    assert np.abs(column - columns * 192 / got.shape[1]).max() <= 0.501 * 192 / got.shape[1]
    assert rows.max() == got.shape[0] - 1


def test_a_small_part_in_a_large_view_is_as_dense_as_its_points():
    rng = np.random.default_rng(0)
    big = Camera(500.0, 500.0, 200.0, 200.0, 400, 400)
    points = np.column_stack([rng.uniform(-0.05, 0.05, (3000, 2)), np.full(3000, 0.5)])
    present = (cameras.organise(points, big) != 0).all(-1)
    assert present.sum() > 0.55 * 3000


@pytest.mark.parametrize(("count", "scale"), [(2000, 1.0), (20_000, 50.0), (5, 1.0), (1, 1.0)])
def test_without_a_camera_a_cloud_is_seen_along_z(count, scale):
    rng = np.random.default_rng(1)
    points = rng.uniform([0, 0, 0], [0.2, 0.1, 0.02], (count, 3)) * scale + 3
    got = cameras.organise_from_above(points)
    assert got.dtype == np.float32
    assert got.shape[0] == got.shape[1]
    present = (got != 0).all(-1)
    assert present.any()
    kept = got[present].astype(np.float64)
    # moved as a whole, and in front of the origin
    move = points.min(axis=0) - kept.min(axis=0) if count > 1 else points[0] - kept[0]
    if count <= 5:
        order, other = np.lexsort(kept.T), np.lexsort(points.T)
        np.testing.assert_allclose(kept[order] + move, points[other], atol=1e-5 * scale)
    else:
        assert present.sum() > 0.5 * count
    assert (kept[:, 2] > 0).all()
    rows, columns = np.nonzero(present)
    if count > 5:
        assert np.corrcoef(columns, kept[:, 0])[0, 1] > 0.999
        assert np.corrcoef(rows, kept[:, 1])[0, 1] > 0.999


def test_exact_zeros_are_moved_by_a_nanometre():
    axis = Camera(10.0, 10.0, 4.0, 4.0, 9, 9)
    got = cameras.organise(np.array([[0.0, 0.0, 0.5]]), axis)
    assert np.count_nonzero((got != 0).all(-1)) == 1
    np.testing.assert_allclose(got[got[..., 2] > 0], [[0, 0, 0.5]], atol=1e-9)


@pytest.mark.real
@pytest.mark.parametrize("scan", ["bent", "cut", "good"])
def test_the_calibration_of_the_real_scans(scan):
    """MVTec's camera file puts the points where their pixels are: to 2 pixels, and worse without the lens."""
    root = shared("data", "mvtec3d_native", "cable_gland")
    path = root / "calibration" / "camera_parameters.json"
    camera = decode_camera(path.read_bytes(), path)
    xyz = tifffile.imread(sorted((root / "test" / scan / "xyz").iterdir())[0]).astype(np.float64)
    rows, columns = np.nonzero((xyz != 0).all(-1))

    def distance(seen_by):
        pixel, seen = cameras.pixel_of(xyz[rows, columns], seen_by)
        off = np.hypot(pixel // 400 - rows, pixel % 400 - columns)[seen]
        assert seen.mean() > 0.99
        return np.quantile(off, 0.99)

    assert distance(camera) <= 2.3
    assert distance(camera) < distance(dataclasses.replace(camera, kappa=0.0))
