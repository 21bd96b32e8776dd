"""Plane removal, clusters, the rules of both data sets, padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.cluster import DBSCAN

from muscjax import preprocess
from muscjax.datasets import load_xyz
from muscjax.preprocess import CleanConfig
from tests import layouts
from tests.conftest import shared


def dbscan_largest(points, eps, min_points):
    labels = DBSCAN(eps=eps, min_samples=min_points).fit(points).labels_
    if (labels < 0).all():
        return np.zeros(len(points), bool)
    return labels == np.argmax(np.bincount(labels[labels >= 0]))


@st.composite
def clouds(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, blobs = draw(st.integers(1, 400)), draw(st.integers(1, 6))
    spread, flat = draw(st.floats(0.01, 0.4)), draw(st.booleans())
    points = rng.uniform(-1, 1, (blobs, 3))[rng.integers(blobs, size=count)] + rng.normal(
        0, spread, (count, 3)
    )
    if flat:
        points[:, 2] = 0
    if draw(st.booleans()):
        points[rng.integers(count)] = 1e9  # a far outlier must not overflow the cells
    return points.astype(np.float32)


class TestLargestCluster:
    @given(clouds(), st.floats(0.02, 0.6), st.integers(1, 20))
    def test_equals_dbscan(self, points, eps, min_points):
        got = preprocess.largest_cluster(points, eps=eps, min_points=min_points)
        np.testing.assert_array_equal(got, dbscan_largest(points.astype(float), eps, min_points))
        labels = DBSCAN(eps=eps, min_samples=min_points).fit(points.astype(float)).labels_
        got = preprocess.clusters(points, eps=eps, min_points=min_points)
        np.testing.assert_array_equal(got, labels)

    def test_equals_dbscan_on_two_objects_with_a_bridge(self):
        # 3,000 points, dense cells, and a chain whose links are border points of either side
        rng = np.random.default_rng(1)
        one, two = rng.uniform(0, 0.02, (1500, 3)), rng.uniform(0, 0.02, (1400, 3)) + np.array([0.0302, 0, 0])
        bridge = np.array([[0.0245, 0.01, 0.01], [0.0255, 0.01, 0.01]])
        points = rng.permutation(np.concatenate([one, two, bridge]))
        got = preprocess.largest_cluster(points, eps=0.006, min_points=30)
        np.testing.assert_array_equal(got, dbscan_largest(points, 0.006, 30))
        assert 1500 <= got.sum() < 1600

    def test_first_of_equal_clusters(self):
        points = np.array([[5, 0, 0], [0, 0, 0], [5.1, 0, 0], [0.1, 0, 0]], np.float32)
        got = preprocess.largest_cluster(points, eps=0.2, min_points=2)
        np.testing.assert_array_equal(got, [True, False, True, False])

    def test_noise_and_nothing(self):
        assert not preprocess.largest_cluster(np.eye(3, dtype=np.float32), eps=0.1, min_points=2).any()
        assert preprocess.largest_cluster(np.zeros((0, 3), np.float32), eps=0.1, min_points=2).shape == (0,)

    def test_identical_points(self):
        assert preprocess.largest_cluster(np.ones((40, 3), np.float32), eps=0.1, min_points=30).all()


class TestPlane:
    def test_recovers_the_tilted_ground(self):
        equation, reason = preprocess.plane(layouts.xyz_scan())
        assert reason == ""
        assert equation is not None
        truth = np.array([0.1, -0.35, 1]) / np.linalg.norm([0.1, -0.35, 1])
        # a fit to some 500 points of 0.2 mm noise over 64 mm
        assert abs(equation[:3] @ truth) > 1 - 1e-5
        ground = layouts.xyz_scan()[48:]
        distance = ground[(ground != 0).all(-1)] @ equation[:3] + equation[3]
        assert np.abs(distance).max() < 1.2e-3

    def test_a_corner_of_the_border_may_be_object(self):
        xyz = layouts.xyz_scan()
        corner = xyz[:9, :9]
        corner[..., 2] = np.where(corner[..., 2] != 0, corner[..., 2] - 0.03, 0)
        equation, _ = preprocess.plane(xyz)
        clean, _ = preprocess.plane(layouts.xyz_scan())
        assert equation is not None
        assert clean is not None
        assert abs(equation[:3] @ clean[:3]) > 1 - 1e-5

    def test_same_twice(self):
        first, second = (preprocess.plane(layouts.xyz_scan())[0] for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def test_clean_border_says_so(self):
        xyz = np.where(layouts.box_mask()[..., None], layouts.xyz_scan(), np.float32(0))
        equation, reason = preprocess.plane(xyz)
        assert equation is None
        assert "border of 2 pixels holds 0 points" in reason

    def test_points_on_one_line(self):
        xyz = np.zeros((100, 100, 3), np.float32)
        xyz[0] = np.linspace(1, 2, 100, dtype=np.float32)[:, None]
        assert preprocess.plane(xyz) == (None, "border points lie on one line")

    def test_no_plane_on_the_border(self):
        xyz = np.random.default_rng(0).uniform(1, 2, (64, 64, 3)).astype(np.float32)
        equation, reason = preprocess.plane(xyz)
        assert equation is None
        assert "no plane on the border" in reason


class TestForeground:
    def test_is_the_box(self):
        xyz = layouts.xyz_scan()
        found = preprocess.find_foreground(xyz)
        assert found.note == ""
        np.testing.assert_array_equal(found.mask, layouts.box_mask() & preprocess.valid_points(xyz))
        np.testing.assert_array_equal(preprocess.foreground(xyz), found.mask)

    def test_any_zero_coordinate_is_no_point(self):
        xyz = layouts.xyz_scan()
        xyz[30, 30, 0] = 0
        assert not preprocess.foreground(xyz)[30, 30]

    def test_clean_scan_stays_as_it_is(self):
        xyz = np.where(layouts.box_mask()[..., None], layouts.xyz_scan(), np.float32(0))
        found = preprocess.find_foreground(xyz)
        np.testing.assert_array_equal(found.mask, preprocess.valid_points(xyz))
        assert "plane removal skipped" in found.note

    def test_bare_ground_is_empty(self):
        xyz = layouts.xyz_scan()
        xyz[layouts.BOX] = 0
        xyz[2, 2] = 0
        found = preprocess.find_foreground(xyz)
        assert not found.mask.any()
        assert "off the ground plane" in found.note

    def test_isolated_points_are_kept(self):
        found = preprocess.find_foreground(layouts.xyz_scan(), config=CleanConfig(eps_m=1e-4))
        assert found.mask.sum() > 400
        assert "largest cluster skipped" in found.note

    def test_input_is_not_written_to(self):
        xyz = layouts.xyz_scan()
        xyz.setflags(write=False)
        preprocess.find_foreground(xyz)


class TestEyecandies:
    """A wall at some depth, a floor at the highest y, a dim ball in front and a bright small one."""

    def scan(self):
        rng = np.random.default_rng(0)
        rows, columns = np.mgrid[:60, :60]
        xyz = np.stack([columns * 0.008 - 0.24, rows * 0.008 - 0.24, np.full((60, 60), 2.0)], axis=-1)
        xyz += 0.0031  # no coordinate is 0
        floor, dim, bright = (np.zeros((60, 60), bool) for _ in range(3))
        floor[50:] = True
        xyz[floor, 1] = 0.29
        dim[10:30, 5:30] = True
        bright[35:45, 40:55] = True
        xyz[dim, 2], xyz[bright, 2] = 1.5, 1.2
        rest = ~(floor | dim | bright)
        xyz[rest, 2] += rng.uniform(1, 50, rest.sum())  # far and scattered: noise
        xyz[0, 0] = 0
        rgb = np.full((60, 60, 3), 20, np.uint8)
        rgb[dim], rgb[bright] = (60, 60, 60), (90, 40, 80)
        rgb[floor] = 255
        return xyz.astype(np.float32), rgb, floor, dim, bright

    def test_brightest_cluster_off_the_ground(self):
        xyz, rgb, _, _, bright = self.scan()
        found = preprocess.eyecandies.find_foreground(xyz, rgb)
        assert found.note == ""
        np.testing.assert_array_equal(found.mask, bright)

    def test_ground_stays_where_the_original_keeps_it(self):
        xyz, rgb, floor, _, _ = self.scan()
        found = preprocess.eyecandies.find_foreground(xyz, rgb, ground=False)
        np.testing.assert_array_equal(found.mask, floor)
        assert "GummyBear" in preprocess.eyecandies.WITHOUT_GROUND

    def test_without_an_image_the_largest(self):
        xyz, _, _, dim, _ = self.scan()
        found = preprocess.eyecandies.find_foreground(xyz, None)
        np.testing.assert_array_equal(found.mask, dim)
        assert "no image" in found.note

    def test_isolated_and_empty(self):
        xyz, rgb, _, _, _ = self.scan()
        found = preprocess.eyecandies.find_foreground(xyz * np.float32(100), rgb)
        assert "all isolated" in found.note
        assert found.mask.any()
        found = preprocess.eyecandies.find_foreground(np.zeros_like(xyz), rgb)
        assert not found.mask.any()
        assert "no point" in found.note

    def test_equals_the_rule_written_out(self):
        xyz, rgb, _, _, _ = self.scan()
        valid = (xyz != 0).all(-1)
        y = xyz[..., 1]
        keep = valid & ((y - y[valid].min()) / (y[valid].max() - y[valid].min()) <= 0.99)
        labels = DBSCAN(eps=0.03, min_samples=30).fit(xyz[keep].astype(float)).labels_
        brightest = max(range(labels.max() + 1), key=lambda k: rgb[keep][labels == k].mean())
        keep[keep] = labels == brightest
        np.testing.assert_array_equal(preprocess.eyecandies.find_foreground(xyz, rgb).mask, keep)


class TestRemovedPixels:
    def test_missing_depth_follows_the_nearest(self):
        valid = np.array([[1, 0, 0, 0, 1, 1, 0]], bool)
        mask = np.array([[1, 0, 0, 0, 0, 1, 0]], bool)
        got = preprocess.removed_pixels(valid, mask)
        np.testing.assert_array_equal(got[0, [0, 1, 3, 4, 5, 6]], [False, False, True, True, False, False])

    def test_complete_and_empty(self):
        mask = np.array([[True, False]])
        np.testing.assert_array_equal(preprocess.removed_pixels(np.ones((1, 2), bool), mask), ~mask)
        assert not preprocess.removed_pixels(np.zeros((1, 2), bool), np.zeros((1, 2), bool)).any()

    def test_nothing_removed_where_everything_is_object(self):
        valid = np.random.default_rng(0).random((30, 20)) < 0.6
        assert not preprocess.removed_pixels(valid, valid).any()


@pytest.mark.parametrize(
    ("hw", "pad"),
    [
        ((400, 400), (0, 0, 0, 0)),
        ((900, 400), (0, 0, 250, 250)),
        ((600, 800), (100, 100, 0, 0)),
        ((481, 640), (109, 110, 30, 30)),
        ((224, 224), (0, 0, 0, 0)),
    ],
)
def test_pad_to_square(hw, pad):
    assert preprocess.pad_to_square(hw) == pad


@pytest.mark.real
@pytest.mark.parametrize("stem", ["000", "001"])
@pytest.mark.parametrize("defect", ["bent", "cut", "good", "hole", "thread"])
def test_native_scans_equal_open3d(defect, stem):
    folder = shared("data", "mvtec3d_native", "cable_gland", "test", defect)
    xyz = load_xyz(folder / "xyz" / f"{stem}.tiff")
    mask = preprocess.foreground(xyz)
    theirs = np.asarray(Image.open(folder / "foreground_open3d" / f"{stem}.png")) > 0
    assert (mask & theirs).sum() / (mask | theirs).sum() >= 0.99
