"""FPFH: float64 reference, Open3D's recorded output, symmetries, degenerate clouds, memory."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax.backbones import descriptors
from muscjax.config import FpfhConfig
from muscjax.types import Cloud, PointGroups, Surface
from tests.reference import fpfh as reference

CONFIG = FpfhConfig(normal_radius=0.0025, normal_neighbours=12, feature_radius=0.0035, feature_neighbours=24)
SIDE = 13


def bumpy(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """(side², 3): a rough 1 mm grid, 0.4 m from the camera; multiples of 2⁻²² m, so that sums are exact."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    z = 0.4 + 0.001 * np.sin(x) * np.cos(0.7 * y) + rng.normal(0, 2e-4, side**2)
    points = np.stack([(x - side / 2) * 1e-3, (y - side / 2) * 1e-3, z], axis=1)
    points[:, :2] += rng.uniform(-3e-4, 3e-4, (side**2, 2))
    return (np.round(points * 2**22) / 2**22).astype(np.float32)


def as_cloud(points, *, padding: int = 0, surface: Surface | None = None) -> Cloud:
    count = len(points)
    padded = np.concatenate([points, np.zeros((padding, 3), np.float32)]).astype(np.float32)
    return Cloud(
        points_m=jnp.asarray(padded),
        points=jnp.zeros_like(padded),
        valid=jnp.arange(count + padding) < count,
        pixel=jnp.arange(count + padding, dtype=jnp.int32) % max(count, 1),
        surface=surface,
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


def singles(count: int) -> PointGroups:
    return as_groups(np.arange(count)[:, None])


def per_point(points, valid=None, config=CONFIG, **options) -> np.ndarray:
    valid = jnp.ones(len(points), bool) if valid is None else jnp.asarray(valid)
    pixel = jnp.arange(len(points), dtype=jnp.int32)
    run = jax.jit(descriptors.point_fpfh, static_argnames=("config", "grid_hw"))
    return np.asarray(run(jnp.asarray(points), valid, pixel, config, **options))


def unit(vectors) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def expected(points, config=CONFIG, **options):
    """The reference, and the points where it can be compared; the test is void if these are few."""
    result, safe = reference.fpfh(points, np.ones(len(points), bool), config, **options)
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
        for run in (descriptors.oriented_normals, jax.jit(descriptors.oriented_normals)):
            found = np.asarray(run(*neighbourhood, radius=0.0025))
            np.testing.assert_allclose(found[clear], truth[clear], atol=1e-4)

    def test_face_the_camera_with_length_one(self, neighbourhood):
        found = np.asarray(descriptors.oriented_normals(*neighbourhood, radius=0.0025))
        assert ((found * np.asarray(neighbourhood[0])).sum(axis=1) < 0).all()
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)

    @given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1.0), st.floats(0.01, 1.0), st.floats(-12, 12))
    def test_least_direction_equals_eigh(self, seed, flatness, width, power):
        """Eigenvalues (least, middle, 1) of any gap that float32 resolves, at any scale."""
        q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
        values = np.array([0.5 * width * flatness * 0.9, width, 1.0])
        a = ((q * values) @ q.T * 10.0**power).astype(np.float32)
        entries = tuple(jnp.asarray(a[i, j]) for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)))
        vector, planar = descriptors._least_direction(entries)
        assert bool(planar)
        truth = np.linalg.eigh(a.astype(np.float64))[1][:, 0]
        assert abs(np.dot(np.array(vector), truth)) > 1 - 1e-7
        sine = np.linalg.norm(np.cross(np.array(vector, np.float64), truth))
        assert sine < 4e-6 / (values[1] - values[0])

    @pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1e-30)])
    def test_no_plane_is_said_so(self, values):
        q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
        a = ((q * np.array(values)) @ q.T).astype(np.float32)
        entries = tuple(jnp.asarray(a[i, j]) for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)))
        vector, planar = descriptors._least_direction(entries)
        assert not bool(planar)
        assert np.isfinite(np.array(vector)).all()


class TestPointDescriptor:
    def test_equals_float64_reference(self):
        points = bumpy()
        truth, safe = expected(points)
        np.testing.assert_allclose(per_point(points)[safe], truth[safe], atol=2e-3)
        eager = descriptors.point_fpfh(
            jnp.asarray(points), jnp.ones(len(points), bool), jnp.zeros(len(points), jnp.int32), CONFIG
        )
        np.testing.assert_allclose(np.asarray(eager)[safe], truth[safe], atol=2e-3)

    def test_few_points_disagree_where_an_angle_is_near_an_edge(self):
        """Even there only whole counts may move: one pair in 24 of one neighbour."""
        points = bumpy()
        truth, _ = expected(points)
        difference = np.abs(per_point(points) - truth).max(axis=1)
        assert np.mean(difference > 0.01) < 0.2

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

    @given(st.integers(0, 2**32 - 1))
    def test_rotation_about_the_camera_axis(self, seed):
        points = bumpy()
        truth, safe = expected(points, margin=2e-4)
        angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
        c, s = np.cos(angle), np.sin(angle)
        turned = points.astype(np.float64) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        np.testing.assert_allclose(per_point(turned.astype(np.float32))[safe], truth[safe], atol=0.05)

    def test_distance_to_the_camera(self):
        """Moved along the axis (by an exact number), nothing turns away from the camera: nothing changes."""
        points = bumpy()
        moved = points + np.array([0, 0, 0.25], np.float32)
        assert (moved.astype(np.float64) - points == [0, 0, 0.25]).all()
        _, safe = expected(points)
        np.testing.assert_allclose(per_point(moved)[safe], per_point(points)[safe], atol=1e-2)

    @given(st.integers(0, 2**32 - 1))
    def test_order_of_points(self, seed):
        points = bumpy()
        truth, safe = expected(points)
        order = np.random.default_rng(seed).permutation(len(points))
        np.testing.assert_allclose(
            per_point(points[order])[safe[order]], truth[order][safe[order]], atol=2e-3
        )

    def test_padding_changes_nothing(self):
        """Also where the padded rows hold numbers; 300 rows are more than one block and not a whole one."""
        points = bumpy()
        padded = np.concatenate([points, np.full((300 - len(points), 3), 0.4, np.float32)])
        valid = np.arange(300) < len(points)
        found = per_point(padded, valid)
        np.testing.assert_allclose(found[valid], per_point(points), atol=1e-3)
        assert not found[~valid].any()

    def test_orientation_tells_a_dent_from_a_bump(self):
        """The same cap, towards the camera and away from it: φ, the slope of the chord, changes its sign."""
        y, x = np.mgrid[-4:5, -4:5].reshape(2, -1) * 1e-3
        cap = (x**2 + y**2) / 0.02
        histograms = []
        for sign in (1, -1):
            points = np.stack([x, y, 0.4 + sign * cap], axis=1).astype(np.float32)
            histograms.append(per_point(points)[40, 22:])
        bump, dent = histograms
        np.testing.assert_allclose(bump, dent[::-1], atol=20)
        assert bump[:5].sum() > 100 > bump[6:].sum()

    def test_by_grid_equals_brute_force(self):
        points = bumpy()
        grid = per_point(points, grid_hw=(SIDE, SIDE))
        np.testing.assert_allclose(grid, per_point(points), atol=1e-3)

    def test_open3d(self):
        """Four of 16 points as Open3D 0.20 gives them (hybrid searches of the same radii and counts)."""
        points = (OPEN3D_POINTS.astype(np.float32) * np.float32(1e-5)).astype(np.float32)
        config = FpfhConfig(
            normal_radius=0.003, normal_neighbours=8, feature_radius=0.004, feature_neighbours=12
        )
        found = per_point(points, config=config)[:4]
        filled = np.zeros((4, 33))
        filled[:, [4, 5, *range(14, 19), *range(25, 32)]] = OPEN3D_HISTOGRAMS
        np.testing.assert_allclose(found, filled, atol=2e-3)
        truth, _ = reference.fpfh(points, np.ones(16, bool), config)
        np.testing.assert_allclose(truth[:4], filled, atol=5.1e-4)


# Units of 10 µm; no angle is within 10⁻³ of an edge. The bins that are not listed are empty.
OPEN3D_POINTS = np.array(
    [
        [[-158, -140, 40015], [-61, -187, 39988], [50, -174, 39967], [200, -182, 40017]],
        [[-152, -24, 39978], [-67, -30, 40042], [33, -71, 39989], [158, -34, 40029]],
        [[-146, 60, 40030], [-25, 53, 40050], [45, 77, 40003], [194, 73, 40005]],
        [[-169, 167, 40040], [-36, 199, 39958], [51, 157, 39965], [197, 183, 40003]],
    ]
).reshape(16, 3)
OPEN3D_HISTOGRAMS = np.array(
    [
        [44.885, 155.115, 16.204, 44.965, 102.647, 34.938, 1.246]
        + [4.547, 44.201, 21.174, 81.007, 28.665, 17.168, 3.237],
        [42.701, 157.299, 6.576, 29.878, 118.245, 44.16, 1.141]
        + [5.508, 27.715, 22.145, 90.412, 45.75, 6.768, 1.702],
        [24.304, 175.696, 3.488, 30.141, 100.747, 62.509, 3.116]
        + [12.678, 35.501, 31.367, 67.693, 46.543, 5.157, 1.061],
        [23.344, 176.656, 3.479, 52.837, 57.642, 58.769, 27.273]
        + [5.145, 67.87, 32.553, 65.653, 25.833, 2.439, 0.505],
    ]
)


class TestGroupDescriptor:
    def test_is_the_mean_over_the_points_with_repeats_at_length_one(self):
        points = bumpy()
        indices = np.random.default_rng(0).integers(0, len(points), (300, 5))
        indices[0] = 7
        found = descriptors.fpfh(as_cloud(points), as_groups(indices), CONFIG, grid_hw=None)
        assert found.shape == (1, 300, 33)
        assert found.dtype == jnp.float32
        truth = reference.of_groups(per_point(points).astype(np.float64), indices)
        np.testing.assert_allclose(found[0], truth, atol=1e-6)

    @pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.3, -0.2)])
    def test_plane_gives_one_constant(self, tilt):
        y, x = np.mgrid[-5:6, -5:6].reshape(2, -1) * 1e-3
        points = np.stack([x, y, 0.4 + tilt[0] * x + tilt[1] * y], axis=1).astype(np.float32)
        found = descriptors.fpfh(as_cloud(points), singles(len(points)), CONFIG, grid_hw=None)[0]
        wanted = np.zeros(33)
        wanted[[5, 16, 27]] = 3**-0.5
        np.testing.assert_allclose(found, np.tile(wanted, (len(points), 1)), atol=1e-6)

    def test_relative_radii_ignore_the_scale(self):
        points = bumpy()
        relative = FpfhConfig(
            unit="relative",
            normal_radius=0.3,
            normal_neighbours=12,
            feature_radius=0.4,
            feature_neighbours=24,
        )
        radius = float(descriptors.cloud_radius(jnp.asarray(points), jnp.ones(len(points), bool)))
        truth = np.linalg.norm(points - points.astype(np.float64).mean(axis=0), axis=1).max()
        assert radius == pytest.approx(truth, rel=1e-5)
        metric = dataclasses.replace(
            relative, unit="metres", normal_radius=0.3 * radius, feature_radius=0.4 * radius
        )
        args = as_groups(np.arange(len(points)).reshape(-1, 13))
        one = descriptors.fpfh(as_cloud(points, padding=7), args, relative, grid_hw=None)
        two = descriptors.fpfh(as_cloud(points), args, metric, grid_hw=None)
        four = descriptors.fpfh(as_cloud(points * 4), args, relative, grid_hw=None)
        np.testing.assert_allclose(one, two, atol=1e-5)
        np.testing.assert_allclose(one, four, atol=1e-5)

    def test_full_resolution_reads_the_surface(self):
        dense = bumpy()
        row = np.arange(0, len(dense), 3)
        surface = Surface(
            points_m=jnp.asarray(np.concatenate([dense, np.zeros((5, 3), np.float32)])),
            valid=jnp.arange(len(dense) + 5) < len(dense),
            pixel=jnp.arange(len(dense) + 5, dtype=jnp.int32) % len(dense),
            row=jnp.asarray(np.concatenate([row, [0, 0]]), jnp.int32),
        )
        cloud = as_cloud(dense[row], padding=2, surface=surface)
        config = dataclasses.replace(CONFIG, full_resolution=True)
        found = descriptors.fpfh(cloud, singles(len(row)), config, grid_hw=(SIDE, SIDE))[0]
        np.testing.assert_allclose(found, unit(per_point(dense)[row]), atol=1e-5)
        with pytest.raises(ValueError, match=r"cloud\.surface"):
            descriptors.fpfh(as_cloud(dense), singles(4), config, grid_hw=None)

    def test_batch_is_each_alone(self):
        clouds = [as_cloud(bumpy(1), padding=31), as_cloud(bumpy(2)[:150], padding=50)]
        groups = [as_groups(np.arange(140).reshape(-1, 10)), as_groups(np.arange(140)[::-1].reshape(-1, 10))]
        stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
        run = jax.vmap(lambda c, g: descriptors.fpfh(c, g, CONFIG, grid_hw=None), out_axes=1)
        together = run(jax.tree.map(stack, *clouds), jax.tree.map(stack, *groups))
        alone = [descriptors.fpfh(c, g, CONFIG, grid_hw=None)[0] for c, g in zip(clouds, groups, strict=True)]
        np.testing.assert_allclose(together[0], np.stack(alone), atol=1e-5)


LINE = np.stack([np.arange(20) * 1e-3, np.zeros(20), np.full(20, 0.4)], axis=1)
SLANTED = np.arange(20)[:, None] * np.array([[3e-4, 5e-4, 7e-4]]) + np.array([[0.01, 0.02, 0.4]])


@pytest.mark.parametrize("grid_hw", [None, (5, 5)])
class TestDegenerate:
    def of(self, points, grid_hw, padding=0) -> np.ndarray:
        cloud = as_cloud(np.asarray(points, np.float32).reshape(-1, 3), padding=padding)
        return np.asarray(
            descriptors.fpfh(
                cloud, as_groups([[0, 0], [0, max(len(points) - 1, 0)]]), CONFIG, grid_hw=grid_hw
            )
        )[0]

    def test_empty_cloud_and_lone_point_are_zero(self, grid_hw):
        assert not self.of(np.zeros((0, 3)), grid_hw, padding=8).any()
        assert not self.of([[0.0, 0.0, 0.4]], grid_hw, padding=8).any()
        assert not self.of([[0.0, 0.0, 0.4]], grid_hw).any()

    @pytest.mark.parametrize("points", [LINE[:2], LINE[:3], LINE, SLANTED], ids=["2", "3", "line", "slanted"])
    def test_few_or_collinear_points_look_at_the_camera(self, points, grid_hw):
        found = self.of(points, grid_hw, padding=4)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)

    def test_coincident_points_count_as_flat(self, grid_hw):
        found = self.of(np.tile([[0.01, 0.02, 0.4]], (9, 1)), grid_hw, padding=4)
        wanted = np.zeros(33)
        wanted[[5, 16, 27]] = 3**-0.5
        np.testing.assert_allclose(found, np.stack([wanted, wanted]), atol=1e-6)

    def test_point_at_the_camera_is_finite(self, grid_hw):
        found = self.of(np.concatenate([np.zeros((1, 3)), LINE - LINE[:1]]), grid_hw)
        assert np.isfinite(found).all()

    def test_neighbours_at_any_distance(self, grid_hw):
        """From 10⁻¹⁸ m to 1 m: no square under- or overflows into NaN."""
        steps = 10.0 ** np.arange(-18, 1)
        points = np.stack([steps, steps[::-1] * 0.5, steps * 0.25], axis=1)
        wide = dataclasses.replace(CONFIG, normal_radius=10.0, feature_radius=10.0)
        found = descriptors.fpfh(as_cloud(points), singles(19), wide, grid_hw=grid_hw)
        assert np.isfinite(np.asarray(found)).all()


def test_memory_does_not_hold_the_pairs_of_a_cloud():
    """8,192 points, 100 neighbours: the largest intermediate is the list of neighbours and not P·k·33."""
    cloud = jax.eval_shape(lambda: as_cloud(np.zeros((8192, 3), np.float32)))
    groups = jax.eval_shape(lambda: as_groups(np.zeros((1024, 128), np.int32)))
    for grid_hw in (None, (224, 224)):
        run = lambda c, g, hw=grid_hw: descriptors.fpfh(c, g, FpfhConfig(), grid_hw=hw)  # noqa: E731
        sizes = [v.aval.size for v in intermediates(jax.make_jaxpr(run)(cloud, groups).jaxpr)]
        assert max(sizes) * 4 <= 16 << 20


def intermediates(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from intermediates(inner)
