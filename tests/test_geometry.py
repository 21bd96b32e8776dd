"""Clouds from organised scans, and farthest points."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscjax import geometry
from muscjax.errors import InputError
from tests.reference import geometry as reference

TAGS = ["A64", "A256", "B128"]
jitted = jax.jit(geometry.farthest_points, static_argnums=2, static_argnames="skip_origin")


def scan(height=12, width=10, seed=0):
    """A tilted plane in metres with holes."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    xyz = np.stack([columns * 1e-3, rows * 1e-3, 0.5 + 1e-3 * columns], axis=-1) + 1e-2
    xyz[rng.random((height, width)) < 0.2] = 0
    return xyz.astype(np.float32)


# Sizes


def test_buckets_are_four_per_octave():
    sizes = sorted({geometry.bucket_size(n) for n in range(4096, 20481)})
    assert sizes == [4096, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384, 20480]


@given(st.integers(0, 10**7))
def test_bucket_holds_its_count_and_little_more(count):
    size = geometry.bucket_size(count)
    assert max(count, 256) <= size <= max(256, 1.25 * count)
    assert geometry.bucket_size(size) == size


@given(st.integers(1, 500), st.integers(1, 500))
def test_resampling_rule(source, target):
    expected = [math.floor(Fraction(i * source, target)) for i in range(target)]
    np.testing.assert_array_equal(geometry.resample_index(source, target), expected)


# Clouds


def test_golden_cloud(golden):
    arrays = golden("end_to_end")
    for raw, normalised in zip(arrays["xyz_raw"], arrays["xyz_normalised"], strict=True):
        cloud = geometry.cloud_from_xyz(np.moveaxis(raw, 0, -1))
        valid, pixel = np.asarray(cloud.valid), np.asarray(cloud.pixel)
        np.testing.assert_array_equal(pixel[valid], np.flatnonzero((raw != 0).all(axis=0)))
        want = normalised.reshape(3, -1).T[pixel[valid]]
        np.testing.assert_allclose(np.asarray(cloud.points)[valid], want, atol=2e-6, rtol=0)


def test_cloud_fields():
    xyz = scan()
    xyz[3, 3, 0] = 0  # one raw coordinate of 0: not foreground
    mask = np.ones(xyz.shape[:2], bool)
    mask[:2] = False
    cloud = geometry.cloud_from_xyz(xyz, foreground=mask)
    chex.assert_shape([cloud.points, cloud.points_m], (256, 3))
    count = int(np.sum(cloud.valid))
    assert 30 not in np.asarray(cloud.pixel)[:count] - 3
    assert np.asarray(cloud.pixel)[:count].min() >= 20
    assert not np.any(cloud.valid[count:])
    for field in (cloud.points, cloud.points_m, cloud.pixel):
        assert not np.any(field[count:])
    np.testing.assert_array_equal(cloud.points_m[:count], xyz.reshape(-1, 3)[cloud.pixel[:count]])
    np.testing.assert_allclose(np.mean(cloud.points[:count], axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(cloud.points[:count], axis=1).max(), 1, rtol=1e-6)


def test_clouds_without_extent():
    xyz = np.zeros((4, 4, 3), np.float32)
    empty = geometry.cloud_from_xyz(xyz)
    assert not np.any(empty.valid)
    xyz[1, 1] = xyz[2, 2] = 0.3
    for keep in ([(1, 1)], [(1, 1), (2, 2)]):
        mask = np.zeros((4, 4), bool)
        mask[tuple(zip(*keep, strict=True))] = True
        cloud = geometry.cloud_from_xyz(xyz, foreground=mask)
        assert np.sum(cloud.valid) == len(keep)
        assert not np.any(cloud.points)


@pytest.mark.parametrize("sensor_size", [None, 512])
def test_surface_rows_are_the_working_points(sensor_size):
    sensor = scan(20, 24)
    present = np.zeros((20, 24), bool)
    present[3:, 5:] = True
    hw = (9, 7)
    cloud = geometry.cloud_from_xyz(
        geometry.resample_nearest(sensor, hw),
        foreground=geometry.resample_nearest(present, hw),
        sensor_xyz_m=sensor,
        sensor_foreground=present,
        sensor_size=sensor_size,
    )
    surface, valid = cloud.surface, np.asarray(cloud.valid)
    assert surface is not None
    chex.assert_shape(
        surface.points_m, (512 if sensor_size else geometry.bucket_size(int(np.sum(surface.valid))), 3)
    )
    np.testing.assert_array_equal(
        surface.pixel[surface.valid], np.flatnonzero(present & (sensor != 0).all(axis=-1))
    )
    np.testing.assert_array_equal(surface.points_m[surface.row[valid]], cloud.points_m[valid])
    rows, columns = np.divmod(cloud.pixel[valid], hw[1])
    source = (rows * 20 // 9) * 24 + columns * 24 // 7
    np.testing.assert_array_equal(surface.pixel[surface.row[valid]], source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xyz_m": scan()[..., :2]}, r"^xyz_m: found shape \(12, 10, 2\), expected \(H, W, 3\)$"),
        ({"foreground": np.ones((3, 3), bool)}, "^xyz_m: found a foreground of shape"),
        ({"size": 5}, r"^size: found 5, expected at least the \d+ foreground points$"),
        ({"xyz_m": scan() * np.float32(np.nan)}, r"^xyz_m: found \d+ foreground points that are not finite"),
        ({"sensor_xyz_m": np.zeros((24, 20, 3))}, "^sensor_xyz_m: found no foreground at"),
        ({"sensor_xyz_m": scan(), "sensor_size": 5}, "^sensor_size: found 5, expected at least"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(InputError, match=message):
        geometry.cloud_from_xyz(**({"xyz_m": scan()} | change))


# Farthest points


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("skip_origin", [True, False])
def test_golden_farthest_points(golden, tag, skip_origin):
    arrays = golden("ipg")
    points = arrays[f"{tag[0]}_xyz"]
    want = arrays[f"{tag}_center_idx" + ("" if skip_origin else "_noskip")]
    index, distinct = jitted(points, np.ones(len(points), bool), len(want), skip_origin=skip_origin)
    np.testing.assert_array_equal(index, want)
    assert np.all(distinct)


@pytest.mark.parametrize("name", ["quirk", "quirk0", "grid"])
@pytest.mark.parametrize("skip_origin", [True, False])
def test_golden_origin_rule_and_first_index_among_ties(golden, name, skip_origin):
    arrays = golden("ipg")
    points = arrays[f"fps_{name}_xyz"]
    want = arrays[f"fps_{name}_" + ("skip" if skip_origin else "noskip")]
    index, _ = geometry.farthest_points(points, np.ones(len(points), bool), 96, skip_origin=skip_origin)
    np.testing.assert_array_equal(index, want)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), lattice=st.booleans(), skip_origin=st.booleans())
def test_farthest_points_reference(seed, lattice, skip_origin):
    rng = np.random.default_rng(seed)
    points = (rng.integers(0, 3, (40, 3)) if lattice else rng.normal(size=(40, 3)) / 10).astype(np.float32)
    valid = rng.random(40) < 0.8
    want, want_distinct = reference.farthest_points(points, valid, 30, skip_origin=skip_origin)
    index, distinct = jitted(points, valid, 30, skip_origin=skip_origin)
    np.testing.assert_array_equal(index, want)
    np.testing.assert_array_equal(distinct, want_distinct)


@pytest.mark.parametrize("present", [0, 1, 7])
def test_fewer_distinct_points_than_picks(present):
    points = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    points[5] = points[2]  # a duplicate is no further point
    index, distinct = jitted(points, np.arange(12) < present, 9)
    further = min(present, 6)
    np.testing.assert_array_equal(distinct, np.arange(9) < further)
    assert not np.any(index[further:])
    assert len(set(np.asarray(index[:further]))) == further


def test_farthest_points_batched_padded_and_unjitted():
    rng = np.random.default_rng(1)
    points, valid = rng.normal(size=(3, 50, 3)).astype(np.float32), np.arange(50) < 40
    pick = functools.partial(geometry.farthest_points, count=9)
    batched, _ = jax.jit(jax.vmap(pick, in_axes=(0, None)))(points, valid)
    single = jnp.stack([pick(p, valid)[0] for p in points])
    short = jnp.stack([pick(p[:40], valid[:40])[0] for p in points])
    chex.assert_trees_all_equal(batched, single, short)
