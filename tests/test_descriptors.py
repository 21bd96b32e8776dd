"""FPFH: float64 reference, Open3D's recorded output, symmetries, degenerate clouds, memory."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax.backbones import descriptors
from muscjax.config import FpfhConfig
from muscjax.types import Cloud, PointGroups, Surface
from tests.budget import largest_intermediate
from tests.reference import fpfh as reference

CONFIG = FpfhConfig(normal_radius=0.0025, normal_neighbours=12, feature_radius=0.0035, feature_neighbours=24)
SIDE = 13
ROWS = 192  # all clouds are padded to it and have as many groups, so that few programs are compiled

NORMALS = jax.jit(descriptors.oriented_normals)
POINT = jax.jit(descriptors.point_fpfh, static_argnames=("config",))
GROUP = jax.jit(descriptors.fpfh, static_argnames=("config",))


def bumpy(seed: int = 0) -> np.ndarray:
    """(169, 3): a rough 1 mm grid 4 cm from the camera; multiples of 2⁻²² m, so that moving it is exact."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE].reshape(2, -1)
    z = 0.04 + 0.001 * np.sin(x) * np.cos(0.7 * y) + rng.normal(0, 2e-4, SIDE**2)
    points = np.stack([(x - SIDE / 2) * 1e-3, (y - SIDE / 2) * 1e-3, z], axis=1)
    points[:, :2] += rng.uniform(-3e-4, 3e-4, (SIDE**2, 2))
    return (np.round(points * 2**22) / 2**22).astype(np.float32)


def padded(points, fill: float = 0.0):
    """Points and valid of ROWS rows."""
    points = np.asarray(points, np.float32).reshape(-1, 3)
    full = np.full((ROWS, 3), fill, np.float32)
    full[: len(points)] = points
    return jnp.asarray(full), jnp.arange(ROWS) < len(points)


def per_point(points, config=CONFIG, *, scale=1.0, fill=0.0) -> np.ndarray:
    scale = jnp.float32(scale)
    return np.asarray(POINT(*padded(points, fill), config, scale=scale))[: len(points)]


def as_cloud(points, *, surface: Surface | None = None) -> Cloud:
    points_m, valid = padded(points)
    pixel = jnp.zeros(ROWS, jnp.int32)
    return Cloud(
        points_m=points_m, points=jnp.zeros_like(points_m), valid=valid, pixel=pixel, surface=surface
    )


def as_groups(indices) -> PointGroups:
    indices = jnp.asarray(indices, jnp.int32)
    g = indices.shape[0]
    zero = jnp.zeros(g, jnp.int32)
    return PointGroups(
        indices=indices,
        centers=jnp.zeros((g, 3)),
        center_index=zero,
        curvature=jnp.zeros(g),
        pixel=zero,
        valid=jnp.ones(g, bool),
    )


# Row i alone; twice, because a group may repeat a point.
SINGLES = as_groups(np.repeat(np.arange(ROWS), 2).reshape(ROWS, 2))


def unit(vectors) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


@functools.cache
def expected(config=CONFIG, scale: float = 1.0):
    """The reference of ``bumpy()``, and where it can be compared; a test that could compare few is void."""
    points = bumpy()
    result, safe = reference.fpfh(points, np.ones(len(points), bool), config, scale=scale)
    assert safe.mean() > 0.5
    return result, safe


class TestNormals:
    @pytest.fixture
    def neighbourhood(self):
        points = bumpy()
        near, _ = reference.neighbours(points.astype(np.float64), np.ones(len(points), bool), 12, np.inf)
        index = np.array([[j for j, _ in row] for row in near], np.int32)
        distance = np.array([[d for _, d in row] for row in near], np.float32)
        return jnp.asarray(points), jnp.asarray(index), jnp.asarray(distance)

    def test_equals_float64_eigh(self, neighbourhood):
        points = np.asarray(neighbourhood[0], np.float64)
        truth, clear = reference.normals(points, np.ones(len(points), bool), 12, 0.0025)
        assert clear.mean() > 0.9
        for run in (descriptors.oriented_normals, NORMALS):
            found = np.asarray(run(*neighbourhood, radius=jnp.float32(0.0025)))
            np.testing.assert_allclose(found[clear], truth[clear], atol=1e-4)

    def test_face_the_camera_with_length_one(self, neighbourhood):
        found = np.asarray(NORMALS(*neighbourhood, radius=jnp.float32(0.0025)))
        assert ((found * np.asarray(neighbourhood[0])).sum(axis=1) < 0).all()
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)

    @given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.5), st.floats(0.02, 1.0), st.integers(-6, 3))
    def test_any_shape_of_neighbourhood_at_any_size(self, seed, flatness, width, power):
        """Standard deviations (flatness · width, width, 1) in a random direction."""
        rng = np.random.default_rng(seed)
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        offsets = (rng.normal(size=(16, 3)) * [flatness * width, width, 1.0]) @ turn
        points = ((offsets + np.array([[0, 0, 5]])) * 10.0**power).astype(np.float32)
        index = np.tile(np.arange(16, dtype=np.int32), (16, 1))
        found = np.asarray(NORMALS(points, index, np.zeros((16, 16), np.float32), radius=jnp.float32(1)))
        centred = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
        values, vectors = np.linalg.eigh(centred.T @ centred / (centred**2).sum())
        sine = np.linalg.norm(np.cross(found, vectors[:, 0]), axis=1)
        assert sine.max() < 4e-6 / (values[1] - values[0])

    @pytest.mark.parametrize("spread", [[0, 0, 0], [1, 0, 0], [1e-20, 0, 0]])
    def test_without_a_plane_they_look_at_the_camera(self, spread):
        turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
        offsets = np.linspace(-1, 1, 16)[:, None] * np.array([spread]) @ turn
        points = (offsets * 1e-3 + [[0.01, 0.02, 0.04]]).astype(np.float32)
        index = np.tile(np.arange(16, dtype=np.int32), (16, 1))
        found = NORMALS(points, index, np.zeros((16, 16), np.float32), radius=jnp.float32(1))
        np.testing.assert_allclose(found, -unit(points), atol=1e-6)


class TestPointDescriptor:
    def test_equals_float64_reference(self):
        truth, safe = expected()
        np.testing.assert_allclose(per_point(bumpy())[safe], truth[safe], atol=1e-3)

    def test_not_jitted(self):
        truth, safe = expected()
        eager = descriptors.point_fpfh(*padded(bumpy()), CONFIG)
        np.testing.assert_allclose(np.asarray(eager)[: len(safe)][safe], truth[safe], atol=1e-3)

    def test_an_angle_at_an_edge_moves_one_count(self):
        """Where the reference does not call the point safe, its descriptor still points the same way."""
        truth, safe = expected()
        assert safe.mean() < 1
        np.testing.assert_allclose(unit(per_point(bumpy())), unit(truth), atol=0.1)

    def test_each_histogram_sums_to_100_twice(self):
        sums = per_point(bumpy()).reshape(-1, 3, descriptors.BINS).sum(axis=2)
        np.testing.assert_allclose(sums, 200.0, rtol=1e-5)

    def test_neighbours_are_weighted_by_inverse_square(self):
        spfh = jnp.eye(3, 33, dtype=jnp.float32) * 100
        index = jnp.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]], jnp.int32)
        distance = jnp.array([[0, 1, 2], [0, 1, np.inf], [0, 0, np.inf]], jnp.float32)
        found = np.asarray(descriptors.weighted_histograms(spfh, index, distance))
        wanted = np.zeros((3, 33))
        wanted[0, :3] = 100, 80, 20
        wanted[1, :2] = 100, 100
        wanted[2, 2] = 100  # its neighbours coincide with it or are too far
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        some = descriptors.weighted_histograms(spfh, index, distance, rows=jnp.array([1, 1, 0], jnp.int32))
        np.testing.assert_allclose(np.asarray(some), wanted[[1, 1, 0]], rtol=1e-6)

    @given(st.floats(0, 6.28))
    def test_rotation_about_the_camera_axis(self, angle):
        truth, safe = expected()
        c, s = np.cos(angle), np.sin(angle)
        turned = bumpy().astype(np.float64) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        found = per_point(turned)
        # Turned coordinates are rounded: a few angles closer than the reference's margin may jump.
        agree = np.abs(found - truth).max(axis=1) < 0.01
        assert agree[safe].mean() > 0.95
        np.testing.assert_allclose(unit(found), unit(truth), atol=0.1)

    def test_distance_to_the_camera(self):
        """Moved along the axis, by an exact number: nothing turns away from the camera, nothing changes."""
        points = bumpy()
        moved = points + np.array([[0, 0, 0.25]], np.float32)
        assert (moved.astype(np.float64) - points == [0, 0, 0.25]).all()
        _, safe = expected()
        np.testing.assert_allclose(per_point(moved)[safe], per_point(points)[safe], atol=1e-3)

    @given(st.integers(0, 2**32 - 1))
    def test_order_of_points(self, seed):
        truth, safe = expected()
        order = np.random.default_rng(seed).permutation(len(safe))
        found = per_point(bumpy()[order])
        np.testing.assert_allclose(found[safe[order]], truth[order][safe[order]], atol=1e-3)

    def test_padding_changes_nothing_whatever_it_holds(self):
        np.testing.assert_array_equal(per_point(bumpy(), fill=0.04), per_point(bumpy()))
        rest = np.asarray(POINT(*padded(bumpy(), 0.04), CONFIG, scale=jnp.float32(1)))
        assert not rest[SIDE**2 :].any()

    def test_orientation_tells_a_dent_from_a_bump(self):
        """The same cap, towards the camera and away from it: φ, the slope of the chord, changes its sign."""
        y, x = np.mgrid[-4:5, -4:5].reshape(2, -1) * 1e-3
        cap = (x**2 + y**2) / 0.02
        histograms = []
        for sign in (1, -1):
            points = np.stack([x, y, 0.4 + sign * cap], axis=1)
            histograms.append(per_point(points)[40, 22:])
        bump, dent = histograms
        np.testing.assert_allclose(bump, dent[::-1], atol=20)
        assert bump[:5].sum() > 100 > bump[6:].sum()

    def test_open3d(self):
        """Four of 16 points as Open3D 0.20 gives them (hybrid searches of the same radii and counts)."""
        points = OPEN3D_POINTS.astype(np.float32) * np.float32(1e-5)
        recorded = np.zeros((4, 33))
        recorded[:, [5, *range(14, 18), *range(24, 31)]] = OPEN3D_HISTOGRAMS
        np.testing.assert_allclose(per_point(points)[:4], recorded, atol=1e-3)
        truth, safe = reference.fpfh(points, np.ones(16, bool), CONFIG, margin=1e-3)
        assert safe.all()
        np.testing.assert_allclose(truth[:4], recorded, atol=5.1e-4)


# Units of 10 µm; the bins that are not listed are empty.
OPEN3D_POINTS = np.array(
    [
        [[-134, -148, 39982], [-38, -163, 39989], [73, -174, 39993], [189, -131, 39973]],
        [[-176, -67, 39972], [-59, -33, 40003], [42, -74, 40016], [142, -29, 40045]],
        [[-163, 38, 40044], [-46, 63, 39983], [89, 61, 39973], [148, 87, 40041]],
        [[-131, 194, 39959], [-37, 141, 39997], [58, 197, 40009], [161, 194, 40047]],
    ]
).reshape(16, 3)
OPEN3D_HISTOGRAMS = [
    [200.0, 0.227, 51.497, 139.949, 8.327, 0.94, 4.793, 46.18, 64.267, 67.02, 12.358, 4.443],
    [200.0, 0.417, 64.04, 127.05, 8.493, 0.964, 4.85, 25.825, 52.609, 100.628, 12.624, 2.501],
    [200.0, 1.62, 48.726, 138.675, 10.98, 0.991, 4.517, 50.652, 55.461, 78.361, 6.128, 3.89],
    [200.0, 10.345, 35.739, 130.198, 23.718, 1.376, 4.216, 39.734, 34.58, 94.022, 12.427, 13.644],
]


class TestGroupDescriptor:
    def test_is_the_mean_over_the_points_at_length_one(self):
        points = bumpy()
        indices = np.random.default_rng(0).integers(0, len(points), (ROWS, 2))
        indices[0] = 7
        found = GROUP(as_cloud(points), as_groups(indices), CONFIG)
        assert found.shape == (1, ROWS, 33)
        assert found.dtype == jnp.float32
        truth = reference.of_groups(per_point(points).astype(np.float64), indices)
        kept = expected()[1][indices].all(axis=1)
        np.testing.assert_allclose(found[0][kept], truth[kept], atol=1e-5)

    @pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.3, -0.2), (-1.0, 2.0)])
    def test_plane_gives_one_constant(self, tilt):
        y, x = np.mgrid[-6:7, -6:7].reshape(2, -1) * 1e-3
        points = np.stack([x, y, 0.4 + tilt[0] * x + tilt[1] * y], axis=1)
        found = GROUP(as_cloud(points), SINGLES, CONFIG)[0]
        np.testing.assert_allclose(found[: SIDE**2], np.tile(FLAT, (SIDE**2, 1)), atol=1e-6)
        assert not np.asarray(found)[SIDE**2 :].any()

    def test_relative_radii_ignore_the_scale(self):
        points = bumpy()
        relative = dataclasses.replace(CONFIG, unit="relative", normal_radius=0.4, feature_radius=0.33)
        radius = np.linalg.norm(points - points.astype(np.float64).mean(axis=0), axis=1).max()
        valid = jnp.arange(ROWS) < len(points)
        assert float(descriptors.cloud_radius(padded(points)[0], valid)) == pytest.approx(radius, rel=1e-5)
        truth, safe = expected(relative, radius)
        for factor in (1, 4):
            found = GROUP(as_cloud(points * np.float32(factor)), SINGLES, relative)[0]
            np.testing.assert_allclose(found[: len(safe)][safe], unit(truth)[safe], atol=1e-5)

    def test_full_resolution_reads_the_surface(self):
        dense = bumpy()
        row = np.arange(0, len(dense), 3)
        points_m, valid = padded(dense)
        surface = Surface(
            points_m=points_m,
            valid=valid,
            pixel=jnp.zeros(ROWS, jnp.int32),
            row=jnp.zeros(ROWS, jnp.int32).at[: len(row)].set(row),
        )
        config = dataclasses.replace(CONFIG, full_resolution=True)
        found = GROUP(as_cloud(dense[row], surface=surface), SINGLES, config)[0]
        _, safe = expected()
        kept = safe[row]
        np.testing.assert_allclose(found[: len(row)][kept], unit(per_point(dense)[row])[kept], atol=1e-4)
        with pytest.raises(ValueError, match=r"cloud\.surface"):
            descriptors.fpfh(as_cloud(dense), SINGLES, config)

    def test_batch_is_each_alone(self):
        clouds = [as_cloud(bumpy(1)[:150]), as_cloud(bumpy())]
        together = jax.vmap(lambda c: GROUP(c, SINGLES, CONFIG))(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *clouds)
        )
        alone = np.stack([GROUP(c, SINGLES, CONFIG) for c in clouds])
        safe = np.flatnonzero(expected()[1])
        np.testing.assert_allclose(together[1, 0, safe], alone[1, 0, safe], atol=1e-5)
        # The batched program rounds otherwise, so elsewhere an angle at an edge may jump.
        np.testing.assert_allclose(together, alone, atol=0.1)


@pytest.mark.parametrize("count", [0, 3, 256, 300, 512])
def test_blocks_join_in_order(count):
    rows = jnp.arange(count * 2.0).reshape(count, 2)
    result = descriptors._map_columns(lambda a, b: (a[0] - b)[:, None] * jnp.ones((1, 3)), rows, rows[:, 1])
    np.testing.assert_array_equal(result, -np.ones((count, 3)))


FLAT = np.zeros(33)
FLAT[[5, 16, 27]] = 3**-0.5
LINE = np.stack([np.arange(20) * 1e-3, np.zeros(20), np.full(20, 0.4)], axis=1)
SLANTED = np.arange(20)[:, None] * np.array([[3e-4, 5e-4, 7e-4]]) + np.array([[0.01, 0.02, 0.4]])


class TestDegenerate:
    def of(self, points, config=CONFIG) -> np.ndarray:
        count = np.size(points) // 3
        found = np.asarray(GROUP(as_cloud(points), SINGLES, config))[0]
        assert np.isfinite(found).all()
        assert not found[count:].any()
        return found[:count]

    @pytest.mark.parametrize("count", [0, 1])
    def test_empty_cloud_and_lone_point_are_zero(self, count):
        assert not self.of(LINE[:count]).any()

    @pytest.mark.parametrize("points", [LINE[:2], LINE[:3], LINE, SLANTED], ids=["2", "3", "line", "slanted"])
    def test_points_that_span_no_plane_face_the_camera(self, points):
        """Neighbouring lines of sight differ by 2 mrad, so θ and α are 0 whatever φ is."""
        found = self.of(points)
        np.testing.assert_allclose(found[:, 16] / found[:, 5], 1.0, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found[:, [5, 16, *range(22, 33)]], axis=1), 1.0, atol=1e-5)

    def test_coincident_points_count_as_flat(self):
        found = self.of(np.tile([[0.01, 0.02, 0.4]], (9, 1)))
        spfh_alone = np.tile(FLAT, (9, 1))
        np.testing.assert_allclose(found, spfh_alone, atol=1e-6)

    def test_point_at_the_camera(self):
        self.of(LINE - LINE[:1])

    def test_neighbours_at_any_distance(self):
        """From 10⁻²² m to 1 m: squares that under- or overflow make no NaN."""
        steps = 10.0 ** np.arange(-22, 1)
        points = np.stack([steps, steps[::-1] * 0.5, steps * 0.25], axis=1)
        self.of(points)
        self.of(points * 1e12)


def test_memory_holds_no_pairs_of_a_whole_cloud():
    """8,192 points, 100 neighbours: nothing is larger than the (padded) list of neighbours."""
    points = jax.ShapeDtypeStruct((8192, 3), np.float32)
    index = jax.ShapeDtypeStruct((8192, 100), np.int32)
    distance = jax.ShapeDtypeStruct((8192, 100), np.float32)

    def steps(points, index, distance):
        normals = descriptors.oriented_normals(points, index, distance, radius=jnp.float32(0.004))
        spfh = descriptors.simple_histograms(points, normals, index, distance)
        return descriptors.weighted_histograms(spfh, index, distance)

    assert (
        largest_intermediate(jax.make_jaxpr(steps)(points, index, distance).jaxpr) <= (8192 + 256) * 100 * 4
    )
