"""Scans at working size: geometry, cleaning, and the way back."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from muscjax import datasets, maps, preprocess
from muscjax.config import Config, FpfhConfig, InputConfig
from muscjax.datasets import Scan, prepare
from muscjax.errors import InputError
from muscjax.grids import nearest_sample
from muscjax.types import Frame
from tests import layouts
from tests.conftest import shared

SMALL = Config(input=InputConfig(image_size=32))


def one_line(error: pytest.ExceptionInfo[InputError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


@pytest.fixture
def category(tmp_path):
    return layouts.write_mvtec3d(tmp_path / "set") / "part"


def scans_of(category):
    return datasets.open_dataset(category)[0].scans


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSCJAX_CACHE", str(tmp_path / "own cache"))


class TestPrepare:
    def scan(self, category, i=0):
        return datasets.open_dataset(category)[0].scans[i]

    def test_image_alone_is_left_as_it_is(self, category, tmp_path):
        scan = self.scan(category)
        got = prepare(scan, SMALL, modality="image", cache_dir=tmp_path)
        raw = Image.open(scan.image)
        np.testing.assert_array_equal(got.image, np.asarray(raw.resize((32, 32), Image.Resampling.BICUBIC)))
        assert got.cloud is None
        assert got.foreground is None
        assert got.frame == Frame(source_hw=(64, 64), working_hw=(32, 32))
        assert got.mask is not None
        assert got.mask[13, 14]

    def test_both(self, category, tmp_path):
        scan = self.scan(category)
        config = Config(input=InputConfig(image_size=64))
        got = prepare(scan, config, modality="both", cache_dir=tmp_path)
        xyz = layouts.xyz_scan(seed=0)
        valid = (xyz != 0).all(-1)
        box = layouts.box_mask() & valid
        np.testing.assert_array_equal(got.foreground, box)
        assert got.cloud is not None
        assert got.image is not None
        assert np.count_nonzero(got.cloud.valid) == box.sum()
        np.testing.assert_array_equal(got.cloud.points_m[: box.sum()], xyz[box])
        np.testing.assert_array_equal(got.cloud.pixel[: box.sum()], np.flatnonzero(box))
        # the plane and the outlier are gone from the image, what has no depth follows its neighbours
        black = (got.image == 0).all(-1)
        np.testing.assert_array_equal(black, preprocess.removed_pixels(valid, box))
        np.testing.assert_array_equal(black[valid], ~box[valid])
        inside = np.zeros_like(valid)
        inside[22:40, 26:44] = True
        assert (~valid & inside).any()
        assert not black[inside].any()
        assert black[:18].all()
        assert got.notes == ()

    def test_not_cleaned(self, category, tmp_path):
        scan = self.scan(category)
        got = prepare(scan, SMALL, modality="both", clean=False, cache_dir=tmp_path)
        raw = prepare(scan, SMALL, modality="image")
        np.testing.assert_array_equal(got.image, raw.image)
        xyz = layouts.xyz_scan(seed=0)[::2, ::2]
        np.testing.assert_array_equal(got.foreground, (xyz != 0).all(-1))

    def test_already_clean_scan_says_so(self, category, tmp_path):
        scan = self.scan(category)
        clean = np.where(layouts.box_mask()[..., None], layouts.xyz_scan(), np.float32(0))
        layouts.save_xyz(scan.xyz, clean)
        got = prepare(scan, SMALL, modality="points", cache_dir=tmp_path)
        assert len(got.notes) == 1
        assert str(scan.xyz) in got.notes[0]
        assert got.image is None

    def test_millimetres(self, category, tmp_path):
        scan = self.scan(category)
        metres = prepare(scan, SMALL, modality="points", cache_dir=tmp_path)
        layouts.save_xyz(scan.xyz, layouts.xyz_scan() * np.float32(1000))
        other = prepare(scan, SMALL, modality="points", cache_dir=tmp_path)
        np.testing.assert_array_equal(metres.foreground, other.foreground)
        np.testing.assert_allclose(other.cloud.points_m, metres.cloud.points_m, rtol=3e-7)

    @given(st.integers(8, 100), st.integers(8, 100))
    def test_xyz_is_resampled_by_floor(self, side, size):
        path = self.room / f"{side}.tiff"
        if not path.exists():
            grid = np.mgrid[1 : side + 1, 1 : side + 1].astype(np.float32)
            layouts.save_xyz(path, np.stack([grid[1], grid[0], np.ones((side, side), np.float32)], axis=-1))
        config = Config(input=InputConfig(image_size=16, map_size=size))
        got = prepare(Scan("c", "", "", "s", xyz=path), config, modality="points", clean=False, units="m")
        out = min(size, side)
        assert got.frame == Frame(source_hw=(side, side), working_hw=(out, out))
        index = np.array([i * side // out for i in range(out)])
        points = got.cloud.points_m[got.cloud.valid].reshape(out, out, 3)
        np.testing.assert_array_equal(points[0, :, 0], index + 1)
        np.testing.assert_array_equal(points[:, 0, 1], index + 1)

    @pytest.fixture(autouse=True)
    def _room(self, tmp_path_factory, request):
        type(self).room = tmp_path_factory.getbasetemp()

    def test_sizes_of_image_and_xyz_may_differ(self, tmp_path):
        root = layouts.write_mvtec3d(tmp_path / "set", rgb_hw=(120, 120))
        config = Config(input=InputConfig(image_size=90))
        (dataset,) = datasets.open_dataset(root)
        assert datasets.working_sizes(dataset.scans, config, modality="both") == (90, 64)
        assert datasets.working_sizes(dataset.scans, config, modality="image") == (90, 90)
        got = prepare(dataset.scans[0], config, modality="both", cache_dir=tmp_path)
        assert got.frame == Frame(source_hw=(120, 120), working_hw=(64, 64))
        assert got.image.shape == (90, 90, 3)
        assert got.mask.shape == got.foreground.shape == (64, 64)
        smaller = prepare(dataset.scans[0], config, modality="both", cache_dir=tmp_path, map_size=20)
        assert smaller.foreground.shape == (20, 20)

    def test_padding_to_a_square(self, tmp_path):
        # 200 × 150 pixels and 100 × 75 points become 200 × 200 and 100 × 100
        root = layouts.write_mvtec3d(tmp_path / "set", rgb_hw=(200, 150), xyz_hw=(100, 75))
        scan = datasets.open_dataset(root)[0].scans[0]
        config = Config(input=InputConfig(image_size=100), fpfh=FpfhConfig(full_resolution=True))
        got = prepare(scan, config, modality="both", cache_dir=tmp_path)
        assert got.frame == Frame(source_hw=(200, 150), working_hw=(100, 100), pad=(0, 0, 25, 25))
        xyz = layouts.xyz_scan(100, width=75, seed=0)
        expected = np.pad(layouts.box_mask(100, 75) & (xyz != 0).all(-1), ((0, 0), (12, 13)))
        np.testing.assert_array_equal(got.foreground, expected)
        assert (got.image[:, :11] == 0).all()
        assert (got.image[:, 89:] == 0).all()
        assert got.cloud.surface is not None
        np.testing.assert_array_equal(
            got.cloud.surface.points_m[got.cloud.surface.row[got.cloud.valid]],
            got.cloud.points_m[got.cloud.valid],
        )
        stretched = prepare(scan, config, modality="both", cache_dir=tmp_path, fit="stretch")
        assert stretched.frame.pad == (0, 0, 0, 0)
        assert stretched.frame.working_hw == (75, 75)

    def test_images_without_points_are_stretched(self, tmp_path):
        scan = datasets.open_dataset(layouts.write_mvtec(tmp_path, hw=(40, 60)))[0].scans[0]
        got = prepare(scan, SMALL, modality="image")
        assert got.frame == Frame(source_hw=(40, 60), working_hw=(32, 32))
        padded = prepare(scan, SMALL, modality="image", fit="pad")
        assert padded.frame.pad == (30, 30, 20, 20)

    def test_removed_pixels_of_a_larger_image(self, tmp_path):
        root = layouts.write_mvtec3d(tmp_path / "set", rgb_hw=(128, 128))
        scan = datasets.open_dataset(root)[0].scans[0]
        config = Config(input=InputConfig(image_size=128))
        black = (prepare(scan, config, modality="both", cache_dir=tmp_path).image == 0).all(-1)
        xyz = layouts.xyz_scan(seed=0)
        valid = (xyz != 0).all(-1)
        removed = preprocess.removed_pixels(valid, valid & layouts.box_mask())
        # sample i of the map lies at pixel 2 i
        np.testing.assert_array_equal(black[::2, ::2], removed)

    def test_nearest_sample_is_nearest(self):
        for pixels, samples in [(400, 224), (400, 400), (7, 3), (100, 224), (5, 1)]:
            got = nearest_sample(pixels, samples)
            at = np.arange(samples) * pixels / samples
            gap = np.abs(np.arange(pixels)[:, None] - at)
            np.testing.assert_array_equal(gap[np.arange(pixels), got], gap.min(axis=1))

    def test_aspect_ratio(self, tmp_path):
        root = layouts.write_mvtec3d(tmp_path / "set", rgb_hw=(120, 100))
        (dataset,) = datasets.open_dataset(root)
        scan = dataset.scans[0]
        for call in (
            lambda: prepare(scan, SMALL, modality="both", cache_dir=tmp_path),
            lambda: datasets.working_sizes(dataset.scans, SMALL, modality="points"),
        ):
            with pytest.raises(InputError) as error:
                call()
            one_line(error, scan.xyz, "64×64", "120×100")

    def test_missing_parts(self, tmp_path, category):
        image = datasets.open_dataset(layouts.write_mvtec(tmp_path / "m"))[0].scans[0]
        with pytest.raises(InputError) as error:
            prepare(image, SMALL, modality="points")
        one_line(error, image.image, "no XYZ map")
        points = Scan("c", "test", "good", "000", xyz=self.scan(category).xyz)
        with pytest.raises(InputError) as error:
            prepare(points, SMALL, modality="both", cache_dir=tmp_path)
        one_line(error, points.xyz, "no image")

    def test_truth(self, category, tmp_path):
        bent, good = self.scan(category), self.scan(category, 2)
        assert datasets.load_truth(bent).sum() == 48
        unmasked = Scan("c", "test", "good", "0", image=good.image, label=0)
        assert datasets.load_truth(unmasked).shape == (64, 64)
        assert not datasets.load_truth(unmasked, Frame((64, 64), (32, 32))).any()
        assert datasets.load_truth(Scan("c", "", "", "0", image=good.image)) is None
        assert datasets.load_truth(Scan("c", "", "", "0", image=good.image, label=1)) is None

    def test_empty_foreground(self, category, tmp_path):
        scan = self.scan(category)
        xyz = layouts.xyz_scan()
        xyz[layouts.BOX] = 0
        xyz[2, 2] = 0
        layouts.save_xyz(scan.xyz, xyz)
        got = prepare(scan, SMALL, modality="both", cache_dir=tmp_path)
        assert not got.cloud.valid.any()
        assert not got.foreground.any()

    def test_the_data_set_is_not_written_to(self, category, tmp_path):
        before = tree_digest(category)
        for scan in datasets.open_dataset(category)[0].scans:
            prepare(scan, SMALL, modality="both", cache_dir=tmp_path / "cache")
        assert tree_digest(category) == before


def tree_digest(root):
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


class TestEyecandies:
    def test_the_object_by_its_own_rule(self, tmp_path):
        root = layouts.write_eyecandies(tmp_path / "set", categories=("Lollipop", "GummyBear"))
        for dataset in datasets.open_dataset(root):
            scan = dataset.scans[0]
            assert scan.cleaning == "eyecandies"
            xyz = datasets.load_scan_xyz(scan)
            expected = preprocess.eyecandies.find_foreground(
                xyz, datasets.load_image(scan.image), ground=dataset.category != "GummyBear"
            )
            for modality in ("both", "points"):
                got = prepare(
                    scan, Config(input=InputConfig(image_size=64)), modality=modality, cache_dir=tmp_path
                )
                np.testing.assert_array_equal(got.foreground, expected.mask)
            assert expected.mask.any()

    def test_points_without_the_image(self, tmp_path):
        root = layouts.write_eyecandies(tmp_path / "set", categories=("Lollipop",))
        scan = scans_of(root)[0]
        with_image = prepare(scan, SMALL, modality="points", cache_dir=tmp_path)
        scan.image.write_bytes(b"broken")
        got = prepare(scan, SMALL, modality="points", cache_dir=tmp_path)
        assert "no image" in got.notes[0]
        assert with_image.notes == ()


def write_mvtec3d_oblong(root):
    return layouts.write_mvtec3d(root, rgb_hw=(90, 60), xyz_hw=(90, 60))


LAYOUTS = [
    layouts.write_mvtec3d,
    write_mvtec3d_oblong,
    layouts.write_mvtec,
    layouts.write_visa,
    layouts.write_visa_1cls,
    layouts.write_mpdd,
    layouts.write_btad,
    layouts.write_eyecandies,
    layouts.write_folder,
    layouts.write_clouds,
]


class TestUndo:
    """A mark at a known source pixel, brought to working size and back, is where it was."""

    @pytest.mark.parametrize("fit", ["pad", "stretch"])
    @pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__.removeprefix("write_"))
    def test_image(self, tmp_path, write, fit):
        scan = datasets.open_dataset(write(tmp_path / "set"))[0].scans[0]
        height, width = datasets.image_hw(scan.image)
        config = Config(input=InputConfig(image_size=56))
        for at in ((height // 5, width // 3), (height - 2, 1)):
            marked = np.zeros((height, width, 3), np.uint8)
            marked[at] = 255
            layouts.save_image(scan.image, marked)
            got = prepare(scan, config, modality="image", cache_dir=tmp_path, fit=fit)
            assert any(got.frame.pad) == (fit == "pad" and height != width)
            self.check(got.image[..., 0].astype(np.float32), got.frame, at, 56)

    @pytest.mark.parametrize(
        "write",
        [layouts.write_mvtec3d, write_mvtec3d_oblong, layouts.write_eyecandies, layouts.write_clouds],
        ids=lambda write: write.__name__.removeprefix("write_"),
    )
    @pytest.mark.parametrize("fit", ["pad", "stretch"])
    def test_points(self, tmp_path, write, fit):
        scan = datasets.open_dataset(write(tmp_path / "set"))[0].scans[0]
        config = Config(input=InputConfig(image_size=40))
        got = prepare(scan, config, modality="points", clean=False, cache_dir=tmp_path, fit=fit)
        xyz = datasets.load_scan_xyz(scan)
        count = np.count_nonzero(got.cloud.valid)
        side = got.frame.working_hw[0]
        for row in (count // 3, count - 1):
            (at,) = np.argwhere((xyz == got.cloud.points_m[row]).all(-1))
            marked = np.zeros(side * side, np.float32)
            marked[got.cloud.pixel[row]] = 1
            self.check(marked.reshape(side, side), got.frame, tuple(at), side)

    def check(self, marked, frame, at, side):
        back = np.asarray(maps.to_source(marked, frame))
        assert back.shape == frame.source_hw
        found = np.unravel_index(np.argmax(back), back.shape)
        pads = (sum(frame.pad[:2]), sum(frame.pad[2:]))
        for place, wanted, hw, pad in zip(found, at, frame.source_hw, pads, strict=True):
            assert abs(int(place) - int(wanted)) <= max(1, (hw + pad) / side)  # a pixel of the coarser grid


@pytest.mark.real
def test_all_real_scans(tmp_path):
    root = shared("data", "mvtec3d")
    (dataset,) = datasets.open_dataset(root)
    assert (dataset.category, len(dataset.scans), dataset.problems) == ("cable_gland", 108, ())
    assert sum(scan.label or 0 for scan in dataset.scans) == 87
    few = [path for scan in dataset.scans[::27] for path in (scan.image, scan.xyz, scan.mask)]
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in few]
    config = Config()
    assert datasets.working_sizes(dataset.scans, config, modality="both") == (224, 224)

    working = datasets.open_working(dataset.scans, config, modality="both", cache_dir=tmp_path)
    assert working.notes == ()
    assert working.images[:].shape == (108, 224, 224, 3)
    for scan, got in zip(dataset.scans, working.prepared, strict=True):
        count = np.count_nonzero(got.cloud.valid)
        assert 7100 <= count <= 8540  # REFERENCE.md: 7,100-8,500
        assert got.foreground.sum() == count
        assert 0.6 < np.median(got.cloud.points_m[:count, 2]) < 0.7
        assert got.frame == Frame(source_hw=(400, 400), working_hw=(224, 224))
        assert got.mask.any() == (scan.label == 1)
        assert got.notes == ()
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in few] == before


@pytest.mark.real
def test_native_real_scans_at_full_resolution(tmp_path):
    (dataset,) = datasets.open_dataset(shared("data", "mvtec3d_native", "cable_gland"))
    config = Config(fpfh=FpfhConfig(full_resolution=True))
    got = prepare(dataset.scans[0], config, modality="both", cache_dir=tmp_path)
    theirs = np.asarray(Image.open(dataset.scans[0].image.parents[1] / "foreground_open3d" / "000.png")) > 0
    assert got.cloud.surface.valid.sum() == theirs.sum()
    index = np.arange(224) * 400 // 224
    np.testing.assert_array_equal(got.foreground, theirs[np.ix_(index, index)])
