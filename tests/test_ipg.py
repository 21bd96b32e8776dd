"""Curvature and point groups against recorded ones and a reference with loops."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscjax import ipg
from muscjax.config import GroupConfig
from muscjax.geometry import cloud_from_xyz, nearest
from muscjax.types import Cloud
from tests.reference import geometry as reference_geometry
from tests.reference import ipg as reference

jitted = jax.jit(ipg.group, static_argnums=1)
SMALL = GroupConfig(groups=12, group_size=16, initial_size=6, skip_origin=False)  # expansions of 6 and 4


def cloud_of(points, count=256):
    """A cloud whose pixels are its rows times 7, padded to ``count``."""
    points = np.asarray(points, np.float32)
    padded = np.zeros((count, 3), np.float32)
    padded[: len(points)] = points
    valid = np.arange(count) < len(points)
    pixel = np.where(valid, 7 * np.arange(count), 0).astype(np.int32)
    return Cloud(points_m=padded, points=padded, valid=valid, pixel=pixel)  # pyright: ignore


def bent_surface(seed, count=200):
    """A flat half and a crumpled half, so that flat and curved groups both occur."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (count, 3))
    points[:, 2] = np.where(points[:, 0] > 0, 0.2 * rng.normal(size=count), 0.001 * points[:, 2])
    return points


def same_members(a, b):
    return [
        Counter(x) == Counter(y) for x, y in zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True)
    ]


# Recorded arrays


@pytest.mark.parametrize("tag", ["A256", "A64k7", "B128"])
def test_golden_groups(golden, tag):
    arrays = golden("ipg")
    size, initial = map(int, arrays[f"{tag}_params_group_size_Kiter"])
    want = arrays[f"{tag}_center_idx"]
    config = GroupConfig(groups=len(want), group_size=size, initial_size=initial)
    points = arrays[f"{tag[0]}_xyz"]
    groups = jitted(cloud_of(points, len(points)), config)
    np.testing.assert_array_equal(groups.center_index, want)
    np.testing.assert_array_equal(groups.centers, points[want])
    np.testing.assert_allclose(groups.curvature, arrays[f"{tag}_curvatures_f32"], atol=1e-5, rtol=0)
    assert all(same_members(groups.indices, arrays[f"{tag}_iter_idx_f32"]))
    repeats = [size - len(set(row)) for row in np.asarray(groups.indices).tolist()]
    np.testing.assert_array_equal(repeats, arrays[f"{tag}_duplicates_per_group_f32"])


def test_golden_groups_of_whole_scans(golden):
    arrays = golden("end_to_end")
    config = GroupConfig(groups=64, group_size=32, initial_size=20)
    for n, raw in enumerate(arrays["xyz_raw"]):
        groups = jitted(cloud_from_xyz(np.moveaxis(raw, 0, -1)), config)
        np.testing.assert_array_equal(groups.center_index, arrays["center_idx"][n])
        np.testing.assert_array_equal(groups.pixel, arrays["center_pixel_index"][n])
        np.testing.assert_allclose(groups.centers, arrays["center_xyz"][n], atol=2e-6, rtol=0)
        np.testing.assert_allclose(groups.curvature, arrays["curvatures"][n], atol=1e-5, rtol=0)
        assert all(same_members(groups.indices, arrays["group_idx"][n]))


# Equations


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), missing=st.sampled_from([0, 5, 14, 15]))
def test_eq_01_02_curvature(seed, missing):
    points = bent_surface(seed, 40).astype(np.float32)
    center = points[0]
    index, distance = reference_geometry.nearest(center[None], points, np.ones(40, bool), 16)
    index, distance = index[0], distance[0].astype(np.float32)
    distance[16 - missing :] = np.inf
    got = jax.jit(ipg.curvature)(points, center, index, distance)
    want = reference.curvature(center, points[index[1 : 16 - missing]])
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=1e-4)


def test_eq_02_curvature_of_known_surfaces():
    rng = np.random.default_rng(0)
    plane = np.c_[rng.uniform(-1, 1, (64, 2)), np.zeros(64)]
    ball = rng.normal(size=(4096, 3))
    for points, low, high in ((plane, 0, 1e-7), (plane[:, [2, 0, 1]], 0, 1e-7), (ball, 0.3, 1 / 3)):
        points = np.concatenate([np.zeros((1, 3)), points]).astype(np.float32)
        value = ipg.curvature(points, points[0], np.arange(len(points)), np.zeros(len(points), np.float32))
        assert low <= value <= high


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_eq_02_curvature_ignores_pose_and_scale(seed, scale):
    rng = np.random.default_rng(seed)
    points = bent_surface(seed, 30)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    distance = np.zeros(30, np.float32)
    moved = (scale * points @ turn.T).astype(np.float32)
    run = jax.jit(ipg.curvature)
    a = run(points.astype(np.float32), points[0].astype(np.float32), np.arange(30), distance)
    b = run(moved, moved[0], np.arange(30), distance)
    np.testing.assert_allclose(a, b, atol=1e-5)


@given(
    seed=st.integers(0, 2**32 - 1),
    values=st.sampled_from(
        [(1, 1, 0), (1, 0, 0), (1, 1e-4, 1e-4), (1, 1, 1), (3, 2, 1), (1, 1, 1e-6), (0, 0, 0)]
    ),
)
def test_eigenvalues_with_and_without_multiplicity(seed, values):
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    matrix = (turn @ np.diag(values) @ turn.T).astype(np.float32)
    got = np.sort(jax.jit(ipg.eigenvalues)((matrix + matrix.T) / 2))
    np.testing.assert_allclose(got, np.sort(values), atol=5e-7 * max(values))


@pytest.mark.parametrize("expansion", ["released", "paper", "none"])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_eq_03_04_groups_by_the_reference(expansion, seed):
    points = bent_surface(seed)
    groups = jitted(cloud_of(points), dataclasses.replace(SMALL, expansion=expansion))
    points = points.astype(np.float32)
    centers, _ = reference_geometry.farthest_points(points, np.ones(200, bool), 12)
    np.testing.assert_array_equal(groups.center_index, centers)
    near, _ = reference_geometry.nearest(points[centers], points, np.ones(200, bool), 32)
    sizes = {"group_size": 16, "initial_size": 6}
    for g, row in enumerate(near.tolist()):
        bend = reference.curvature(points[row[0]], points[row[1:16]])
        np.testing.assert_allclose(groups.curvature[g], bend, atol=1e-5)
        if bend < 0.01 or expansion == "none":
            want = row[:16]
        elif expansion == "released":
            want = reference.expand_released(points, row, **sizes)
        else:
            want = reference.expand_paper(points, row, range(200), **sizes)
        assert Counter(groups.indices[g].tolist()) == Counter(want)
    assert np.all(groups.valid)
    np.testing.assert_array_equal(groups.pixel, 7 * centers)


def test_eq_04_paper_looks_beyond_the_nearest_2k():
    # The arm starts at the edge of the start group; its far end is outside the 2K nearest of the centre, in
    # whose ball a dense patch to the side uses up the places.
    arm = np.c_[np.linspace(0, 1, 24), np.zeros((24, 2))]
    side = np.c_[np.random.default_rng(0).uniform(-0.05, 0.05, (60, 2)), np.full(60, 0.3)]
    points = np.concatenate([arm, side]).astype(np.float32)
    valid = np.ones(len(points), bool)
    index, distance = nearest(points[:1], points, valid, 32)
    sizes = {"group_size": 16, "initial_size": 6}
    got = ipg.expand_paper(points, valid, index, distance, **sizes)
    want = reference.expand_paper(points, np.asarray(index[0]).tolist(), range(len(points)), **sizes)
    assert Counter(np.asarray(got[0]).tolist()) == Counter(want)
    assert not set(want) <= set(np.asarray(index[0]).tolist())  # else this tests nothing


def test_eq_03_threshold_is_compared_in_float32():
    cloud = cloud_of(bent_surface(3))
    plain = jitted(cloud, dataclasses.replace(SMALL, expansion="none"))
    order = np.argsort(plain.curvature)
    below, at = int(order[5]), int(order[6])
    # The double that is exactly the float32 curvature: at the threshold a group is curved.
    config = dataclasses.replace(SMALL, curvature_threshold=float(plain.curvature[at]))
    grown = same_members(jitted(cloud, config).indices, plain.indices)
    assert grown[below]
    assert not grown[at]


def test_defaults_are_one_expansion_of_48():
    assert ipg.expansions(128, 80) == [48]
    assert ipg.expansions(32, 7) == [7, 7, 7, 4]
    assert ipg.expansions(32, 32) == []


# Any cloud


@pytest.mark.parametrize("expansion", ["released", "paper"])
@pytest.mark.parametrize("present", [0, 1, 2, 5, 14, 25, 40])
def test_small_clouds(expansion, present):
    """Fewer points than K_iter, K, 2K and G: one program, no NaN, rows of the cloud only."""
    points = bent_surface(4, 40)[:present]
    config = dataclasses.replace(SMALL, expansion=expansion, curvature_threshold=0.0)
    groups = jitted(cloud_of(points, 40), config)
    chex.assert_tree_all_finite(groups)
    valid = np.asarray(groups.valid)
    assert valid.sum() == min(present, 12)
    assert np.asarray(groups.indices).max() < max(present, 1)
    assert (np.asarray(groups.indices)[~valid] == 0).all()
    assert (np.asarray(groups.curvature)[~valid] == 0).all()
    for row in np.asarray(groups.indices)[valid].tolist():
        if expansion == "paper":
            assert len(set(row)) == min(present, 16)


def test_identical_points_make_one_group():
    groups = jitted(cloud_of(np.full((40, 3), 0.1)), SMALL)
    chex.assert_tree_all_finite(groups)
    np.testing.assert_array_equal(groups.valid, np.arange(12) < 1)
    assert groups.curvature[0] == 0


def test_padding_changes_nothing():
    points = bent_surface(5)
    chex.assert_trees_all_equal(jitted(cloud_of(points), SMALL), jitted(cloud_of(points, 200), SMALL))


def test_batched_clouds_are_the_single_ones():
    clouds = [cloud_of(bent_surface(seed)) for seed in range(2)]
    batch = jax.tree.map(lambda *a: np.stack(a), *clouds)
    batched = jax.jit(jax.vmap(functools.partial(ipg.group, config=SMALL)))(batch)
    for n, cloud in enumerate(clouds):
        single = jitted(cloud, SMALL)
        np.testing.assert_array_equal(batched.center_index[n], single.center_index)
        np.testing.assert_allclose(batched.curvature[n], single.curvature, atol=1e-6)
        assert all(same_members(batched.indices[n], single.indices))


def test_unjitted_parts_are_the_jitted_ones():
    points = bent_surface(6).astype(np.float32)
    valid = np.ones(len(points), bool)
    index, distance = reference_geometry.nearest(points[:3], points, valid, 32)
    index, distance = index.astype(np.int32), distance.astype(np.float32)
    expand = functools.partial(ipg.expand_released, group_size=16, initial_size=6)
    plain, compiled = (f(points, valid, index, distance) for f in (expand, jax.jit(expand)))
    assert all(same_members(plain, compiled))
    args = points, points[0], index[0], distance[0]
    np.testing.assert_allclose(ipg.curvature(*args), jax.jit(ipg.curvature)(*args), atol=1e-6)
