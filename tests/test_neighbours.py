"""Nearest neighbours against recorded ones, a plain search, and SciPy's tree on a real scan."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscjax.geometry import cloud_from_xyz, nearest
from muscjax.neighbours import hilbert_index
from tests.conftest import shared
from tests.reference import geometry as reference

jitted = jax.jit(nearest, static_argnums=3)


def cloud(seed, count, kind):
    """Clouds that a space-filling curve finds easy and hard; ``grid`` is full of exact ties."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3))
    if kind == "surface":
        points[:, 2] = 0.1 * np.sin(3 * points[:, 0])
    if kind == "clusters":
        points = 1e-3 * points + rng.normal(size=(5, 3))[rng.integers(0, 5, count)]
    if kind == "line":
        points[:, 1:] = 0
    if kind == "grid":
        points = rng.integers(-4, 5, (count, 3))
    if kind == "one place":
        points[:] = 0.1
    return points.astype(np.float32)


KINDS = ["volume", "surface", "clusters", "line", "grid", "one place"]


@pytest.mark.parametrize("tag", ["A64", "B128"])
def test_golden_neighbours(golden, tag):
    arrays = golden("ipg")
    points, centers = arrays[f"{tag[0]}_xyz"], arrays[f"{tag}_center_idx"]
    want = arrays[f"{tag}_knn_idx_at_centers"]
    index, distance = jitted(points[centers], points, np.ones(len(points), bool), want.shape[1])
    np.testing.assert_array_equal(index, want)
    np.testing.assert_allclose(distance, arrays[f"{tag}_knn_dist_at_centers"], atol=1e-7, rtol=0)
    np.testing.assert_array_equal(index[:, 0], centers)


@pytest.mark.parametrize(("queries", "count"), [(600, 600), (12, 1500)])  # shared leaves, and own ones
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), absent=st.sampled_from([0.0, 0.3]))
def test_equals_the_plain_search(queries, count, seed, kind, absent):
    points = cloud(seed, count, kind)
    valid = np.random.default_rng(seed).random(count) >= absent
    index, distance = jitted(points[:queries], points, valid, 33)
    some = np.arange(0, queries, max(1, queries // 12))
    want_index, want = reference.nearest(points[some], points, valid, 33)
    np.testing.assert_allclose(distance[some], want, rtol=1e-6, atol=1e-7)
    if kind in ("grid", "one place"):  # exact in float32, so that ties are ties and the order is fixed
        np.testing.assert_array_equal(index[some], want_index)
    # Whatever the rounding: ascending, valid, no row twice, and the distance is that of the row.
    index, distance = np.asarray(index)[valid[:queries]], np.asarray(distance)[valid[:queries]]
    assert (np.diff(distance, axis=1) >= 0).all()
    assert valid[index].all()
    assert all(len(set(row)) == 33 for row in index)
    own = np.linalg.norm(points[index] - points[:queries][valid[:queries]][:, None], axis=2)
    np.testing.assert_allclose(distance, own, rtol=1e-5, atol=1e-7)


def test_radius_padding_and_absent_queries():
    points = cloud(1, 600, "grid")
    valid, asked = np.arange(600) < 500, np.arange(600) % 3 == 0
    search = jax.jit(functools.partial(nearest, k=33))
    index, distance = search(points, points, valid, radius=jnp.float32(2), query_valid=asked)
    want_index, want = reference.nearest(points[asked], points, valid, 33, radius=2.0)
    np.testing.assert_array_equal(index[asked], want_index)
    np.testing.assert_allclose(distance[asked], want, rtol=1e-6)
    assert (np.asarray(index)[~asked] == 0).all()
    assert np.isinf(np.asarray(distance)[~asked]).all()
    # What stands in absent rows is never read.
    other = np.where(valid[:, None], points, np.nan).astype(np.float32)
    again, _ = search(points, other, valid, radius=jnp.float32(2), query_valid=asked)
    np.testing.assert_array_equal(again, index)


@pytest.mark.parametrize("present", [0, 1, 3])
def test_fewer_points_than_neighbours(present):
    points = cloud(2, 8, "volume")
    valid = np.arange(8) < present
    index, distance = jitted(points[:4], points, valid, 10)
    want_index, want = reference.nearest(points[:4], points, valid, 10)
    np.testing.assert_array_equal(index, want_index)
    np.testing.assert_allclose(distance, want, rtol=1e-6)


def test_unjitted_mapped_and_batched_agree():
    points = np.stack([cloud(s, 400, "surface") for s in range(2)])
    valid = np.arange(400)[None] < np.array([[400], [300]])
    search = functools.partial(nearest, k=20)
    single = [search(p[:50], p, v) for p, v in zip(points, valid, strict=True)]
    batched = jax.jit(jax.vmap(search))(points[:, :50], points, valid)
    chex.assert_trees_all_equal(jax.tree.map(lambda *a: jnp.stack(a), *single), batched)


def test_order_of_the_points_does_not_matter():
    points = cloud(5, 600, "volume")
    mixed = np.random.default_rng(0).permutation(600)
    valid = np.ones(600, bool)
    index, distance = jitted(points, points, valid, 33)
    again, again_distance = jitted(points, points[mixed], valid, 33)
    np.testing.assert_array_equal(mixed[again], index)
    np.testing.assert_array_equal(again_distance, distance)


def test_hilbert_index_moves_by_one_cell():
    axis = (np.arange(8) + 0.5) / 8
    cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)
    index = np.asarray(hilbert_index(cells, jnp.zeros(3), jnp.ones(3)))
    path = cells[np.argsort(index)]
    np.testing.assert_allclose(np.abs(np.diff(path, axis=0)).sum(axis=1), 1 / 8, rtol=1e-6)
    assert len(set(index)) == 512


@pytest.mark.real
def test_real_scan_equals_a_tree():
    import tifffile
    from PIL import Image
    from scipy.spatial import cKDTree

    folder = shared("data", "mvtec3d_native", "cable_gland", "test", "good")
    mask = np.asarray(Image.open(folder / "foreground_open3d" / "000.png")) > 0
    scan = cloud_from_xyz(tifffile.imread(folder / "xyz" / "000.tiff"), foreground=mask)
    valid = np.asarray(scan.valid)
    index, distance = jax.jit(lambda p, v: nearest(p, p, v, 100, radius=0.01, query_valid=v))(
        scan.points_m, scan.valid
    )
    tree = cKDTree(scan.points_m[valid])
    want, _ = tree.query(scan.points_m[valid], k=100, distance_upper_bound=0.01)
    np.testing.assert_allclose(np.asarray(distance)[valid], want, rtol=1e-5)
    assert valid[np.asarray(index)[valid]].all()
