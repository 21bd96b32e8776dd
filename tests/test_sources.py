"""The XYZ map of a scan, from every kind of file that it can be made of."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from muscjax import datasets
from muscjax.datasets import Scan
from muscjax.datasets.cameras import decode_camera
from muscjax.datasets.sources import eyecandies_xyz
from muscjax.errors import InputError
from tests import layouts


def one_line(error: pytest.ExceptionInfo[InputError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def load(scan, **options):
    xyz = datasets.load_scan_xyz(scan, **options)
    assert xyz.dtype == np.float32
    assert datasets.scan_xyz_hw(scan) == xyz.shape[:2]
    return xyz


def refused(scan, *parts, **options):
    with pytest.raises(InputError) as error:
        datasets.load_scan_xyz(scan, **options)
    one_line(error, *parts)


@pytest.fixture
def ply(tmp_path):
    """A cloud with its camera and its image, and the map that it comes from."""
    points, grid = layouts.seen_cloud()
    layouts.write_ply(tmp_path / "a.ply", points, scalar="double")
    layouts.save_image(tmp_path / "a.png", layouts.rgb_scan(40, 48))
    (tmp_path / "camera.json").write_text(json.dumps(layouts.CAMERA))
    scan = Scan("c", "", "", "a", tmp_path / "a.png", tmp_path / "a.ply", camera=tmp_path / "camera.json")
    return scan, points, grid.astype(np.float32)


class TestOrganised:
    def test_as_a_plain_file(self, tmp_path):
        xyz = layouts.xyz_scan()
        layouts.save_xyz(tmp_path / "a.tiff", xyz)
        np.save(tmp_path / "a.npy", xyz)
        for path in (tmp_path / "a.tiff", tmp_path / "a.npy"):
            scan = Scan("c", "", "", "a", xyz=path)
            np.testing.assert_array_equal(load(scan), datasets.load_xyz(path))
            np.testing.assert_array_equal(load(scan, units="mm"), datasets.load_xyz(path, units="mm"))

    def test_none(self):
        with pytest.raises(InputError) as error:
            datasets.load_scan_xyz(Scan("c", "", "", "a"))
        one_line(error, "c/a", "no XYZ map")

    def test_missing(self, tmp_path):
        for name in ("a.tiff", "a.npy", "a.ply", "a.png"):
            scan = Scan("c", "", "", "a", xyz=tmp_path / name)
            refused(scan, tmp_path / name, "no such file")
            with pytest.raises(InputError):
                datasets.scan_xyz_hw(scan)

    def test_units_are_checked(self, tmp_path):
        refused(Scan("c", "", "", "a", xyz=tmp_path / "a.ply"), "units", "inch", units="inch")


class TestClouds:
    def test_ply_with_a_camera(self, ply):
        scan, _, grid = ply
        np.testing.assert_array_equal(load(scan), grid)

    def test_npy_with_a_camera(self, ply, tmp_path):
        scan, points, grid = ply
        np.save(tmp_path / "a.npy", points)
        np.testing.assert_array_equal(load(dataclasses.replace(scan, xyz=tmp_path / "a.npy")), grid)

    def test_yaml_and_pose(self, ply, tmp_path):
        scan, points, grid = ply
        angle = 0.3
        pose = np.eye(4)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[:3, 3] = [0.1, -0.2, 0.05]
        layouts.write_ply(tmp_path / "a.ply", points @ pose[:3, :3].T + pose[:3, 3], scalar="double")
        for name, matrix in (("pose", pose), ("extrinsic", np.linalg.inv(pose))):
            fields = layouts.CAMERA | {name: matrix.tolist()}
            (tmp_path / "camera.yaml").write_text(yaml.safe_dump(fields))
            got = load(dataclasses.replace(scan, camera=tmp_path / "camera.yaml"))
            np.testing.assert_allclose(got, grid, atol=1e-7)

    def test_millimetres(self, ply, tmp_path):
        scan, points, grid = ply
        layouts.write_ply(tmp_path / "a.ply", points * 1000, scalar="double")
        for units in ("auto", "mm"):
            np.testing.assert_allclose(load(scan, units=units), grid, rtol=2e-7)
        np.testing.assert_allclose(load(scan, units="m"), grid * 1000, rtol=2e-7)

    def test_points_without_depth_are_left_out(self, ply, tmp_path):
        scan, points, grid = ply
        layouts.write_ply(
            tmp_path / "a.ply",
            np.vstack([points, np.zeros((3, 3)), np.full((4, 3), np.nan)]),
            scalar="double",
        )
        np.testing.assert_array_equal(load(scan), grid)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_not_finite(self, ply, tmp_path, value):
        scan, points, _ = ply
        points[3, 1] = value
        layouts.write_ply(tmp_path / "a.ply", points, scalar="double")
        kind = "coordinates beyond 1e+09" if np.isfinite(value) else "NaN or infinite coordinates"
        refused(scan, scan.xyz, f"{kind} in 1 points")

    def test_nothing_in_it(self, ply, tmp_path):
        scan, points, _ = ply
        for empty in (points[:0], np.zeros((5, 3))):
            layouts.write_ply(tmp_path / "a.ply", empty)
            refused(scan, scan.xyz, "no point")
        layouts.write_ply(tmp_path / "a.ply", -points)
        refused(scan, scan.xyz, "no point in the view of", scan.camera)
        (tmp_path / "a.ply").write_bytes(b"ply\n")
        refused(scan, scan.xyz, "not a readable PLY file")

    def test_an_image_needs_a_camera(self, ply):
        scan, points, _ = ply
        refused(dataclasses.replace(scan, camera=None), scan.xyz, "a.png", "camera.json")
        alone = load(dataclasses.replace(scan, camera=None, image=None))
        assert alone.shape == (*alone.shape[:1] * 2, 3)
        assert (alone != 0).all(-1).sum() > 0.5 * len(points)

    def test_the_size_is_that_of_the_files_now(self, ply):
        scan, points, _ = ply
        assert datasets.scan_xyz_hw(scan) == (40, 48)
        layouts.write_ply(scan.xyz, points[::30])
        os.utime(scan.xyz, ns=(1, 1))
        coarse = datasets.scan_xyz_hw(scan)
        assert coarse < (40, 48)
        assert load(scan).shape[:2] == coarse

    def test_an_array_of_another_shape(self, tmp_path):
        np.save(tmp_path / "a.npy", np.ones((5, 4)))
        refused(Scan("c", "", "", "a", xyz=tmp_path / "a.npy"), tmp_path / "a.npy", "(5, 4)")


class TestCameraFiles:
    def decode(self, text, name="camera.json"):
        from pathlib import Path

        return decode_camera(
            text if isinstance(text, bytes) else json.dumps(text).encode(), Path("set", name)
        )

    def test_pinhole_and_mvtec(self):
        camera = self.decode(layouts.CAMERA)
        assert (camera.fx, camera.cy, camera.hw, camera.kappa) == (90.0, 20.25, (40, 48), 0.0)
        assert camera == self.decode(layouts.CAMERA, "camera.yaml")
        said = {"camera_type": "area_scan_division", "focus": 0.01, "kappa": -2000.0, "sx": 2e-6, "sy": 4e-6}
        said |= {"cx": 10.5, "cy": 20.5, "image_width": 40, "image_height": 30}
        camera = self.decode(said)
        assert (camera.fx, camera.fy, camera.hw) == (pytest.approx(5000), pytest.approx(2500), (30, 40))
        assert camera.kappa == pytest.approx(-0.2)  # per square of the image plane at distance 1

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"fx": None}, "fx: found None"),
            ({"fx": "90"}, "fx: found '90'"),
            ({"fy": -1}, "expected positive pixels"),
            ({"cx": float("nan")}, "cx: found nan"),
            ({"width": 47.5}, "width: found 47.5"),
            ({"height": 10**9}, "height: found 1e+09"),
            ({"pose": [[1, 2], [3]]}, "pose: found no table"),
            ({"pose": [[1, 2], [3, 4]]}, "pose: found shape (2, 2)"),
            ({"extrinsic": np.diag([2, 2, 2, 1]).tolist()}, "extrinsic: found no rotation"),
            ({"extrinsic": np.diag([1, 1, -1, 1]).tolist()}, "extrinsic: found no rotation"),
            ({"extrinsic": np.eye(4).tolist(), "pose": np.eye(4).tolist()}, "extrinsic and pose"),
        ],
    )
    def test_unusable_numbers(self, change, text):
        with pytest.raises(InputError) as error:
            self.decode(layouts.CAMERA | change)
        one_line(error, "camera.json", text)

    @pytest.mark.parametrize("change", [{"focus": 1e200}, {"sx": 1e-300}, {"kappa": -1e299}])
    def test_numbers_beyond_all_lenses(self, change):
        said = {"focus": 1e10, "kappa": -2000.0, "sx": 2e-6, "sy": 4e-6}
        said |= {"cx": 10.5, "cy": 20.5, "image_width": 40, "image_height": 30}
        with pytest.raises(InputError) as error:
            self.decode(said | change)
        one_line(error, "camera.json", "found a focal length of")

    @pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20)])
    @pytest.mark.parametrize("name", ["camera.json", "camera.yaml"])
    def test_no_camera_file(self, content, name):
        if name.endswith("yaml") and content.startswith(b"[["):
            content = content[:1000]
        with pytest.raises(InputError) as error:
            self.decode(content, name)
        one_line(error, name)

    def test_a_missing_number(self):
        fields = dict(layouts.CAMERA)
        del fields["cy"]
        with pytest.raises(InputError) as error:
            self.decode(fields)
        one_line(error, "cy is missing", "fx, fy, cx, cy, width, height")


class TestEyecandies:
    @pytest.fixture
    def scan(self, tmp_path):
        layouts.write_eyecandies(tmp_path, categories=("Lollipop",), splits=("test_public",))
        return datasets.open_dataset(tmp_path)[0].scans[0]

    def test_the_map_is_the_scene(self, scan):
        """Ground and ball to the rounding of the depth, and to float precision at the stored depths."""
        scene, xyz = layouts.candy(), load(scan).astype(np.float64)
        assert (xyz != 0).all()
        step = (scene.high - scene.low) / 65535
        ground = xyz[~scene.ball]
        assert np.abs(ground[:, 1] - layouts.GROUND).max() <= 0.51 * step + 1e-6
        cos, sin = np.cos(0.9), np.sin(0.9)
        height = layouts.GROUND - layouts.BALL
        centre = np.array([0, height, height * cos / sin])
        radius = np.sqrt(((xyz[scene.ball] - centre) ** 2).sum(-1))
        inner = np.abs(radius - layouts.BALL)
        assert np.median(inner) <= 0.51 * step + 1e-6
        assert inner.max() < 1e-4  # at the rim a ray grazes the ball

    def test_the_formula_of_the_data_set(self, scan):
        """With loops and the inverse of intrinsics times pose; but for the origin, which is the camera."""
        scene, xyz = layouts.candy(), load(scan)
        intrinsics = np.array([[711.11, 0, 32, 0], [0, 711.11, 32, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        inverse = np.linalg.inv(intrinsics @ scene.pose)
        camera = np.linalg.inv(scene.pose)[:3, 3]
        for v in range(0, 64, 7):
            for u in range(0, 64, 5):
                depth = scene.stored[v, u] / 65535 * (scene.high - scene.low) + scene.low
                point = depth * (inverse @ [u, v, 1, 1 / depth])[:3] - camera
                np.testing.assert_allclose(xyz[v, u], point, rtol=2e-7, atol=2e-7)

    def test_no_depth(self):
        stored = np.array([[0, 65535]], np.uint16)
        got = eyecandies_xyz(stored, low=0.0, high=2.0, pose=np.eye(4))
        np.testing.assert_array_equal(got[0, 0], 0)
        assert (got[0, 1] != 0).all()
        assert got[0, 1, 0] == np.float32(1e-9)  # on the axis, and still there
        got = eyecandies_xyz(stored[:, ::-1], low=0.0, high=2.0, pose=np.eye(4))
        assert got[0, 0, 2] == 2

    def test_units(self, scan):
        np.testing.assert_array_equal(load(scan, units="m"), load(scan))
        np.testing.assert_allclose(load(scan, units="mm"), load(scan) / 1000, rtol=1e-6)

    @pytest.mark.parametrize(
        ("part", "content", "text"),
        [
            ("depth_info", b"normalization: {min: 1.0}", "found min 1.0 and max None"),
            ("depth_info", b"normalization: {min: 2.0, max: 1.0}", "min < max"),
            ("depth_info", b"normalization: 3", "found min None"),
            ("depth_info", b": :", "not a readable YAML file"),
            ("pose", b"1 0 0 0\n0 1 0 0\n0 0 1 0\n", "pose: found shape (3, 4)"),
            ("pose", b"1 0 0 a\n", "not a readable camera pose"),
            ("pose", b"2 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "pose: found no rotation"),
            ("xyz", b"", "not a readable depth image"),
        ],
    )
    def test_damaged_parts(self, scan, part, content, text):
        path = getattr(scan, part)
        path.write_bytes(content)
        refused(scan, path, text)

    def test_depth_of_8_bits(self, scan):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(scan.xyz)
        refused(scan, scan.xyz, "uint8", "16 bits")
        refused(dataclasses.replace(scan, pose=None), scan.xyz, "pose")

    def test_every_file_counts_for_the_cache(self, scan, tmp_path):
        """A run after a change of bounds or pose does not meet the points of before."""
        from muscjax.config import Config, InputConfig

        config = Config(input=InputConfig(image_size=32))

        def points():
            got = datasets.prepare(scan, config, modality="points", cache_dir=tmp_path / "cache")
            return np.asarray(got.cloud.points_m)

        before = points()
        np.testing.assert_array_equal(points(), before)
        scan.pose.write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
        turned = points()
        assert not np.array_equal(turned, before)
        scan.depth_info.write_text("normalization: {min: 5.0, max: 6.0}")
        assert not np.array_equal(points(), turned)
