"""Layouts on real files on disk, loading, and preparing; every kind of bad input in one line."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from muscjax import datasets, preprocess
from muscjax.config import Config, FpfhConfig, InputConfig
from muscjax.datasets import Scan, prepare, working
from muscjax.errors import InputError
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


def names(dataset):
    return [scan.name for scan in dataset.scans]


class TestLayouts:
    def test_mvtec3d_category(self, category):
        (dataset,) = datasets.open_dataset(category)
        assert (dataset.layout, dataset.category, dataset.root) == ("mvtec3d", "part", category)
        assert names(dataset) == [f"part/test/{d}/{i:03d}" for d in ("bent", "good") for i in range(2)]
        assert [scan.label for scan in dataset.scans] == [1, 1, 0, 0]
        scan = dataset.scans[1]
        assert scan.image == category / "test/bent/rgb/001.png"
        assert scan.xyz == category / "test/bent/xyz/001.tiff"
        assert scan.mask == category / "test/bent/gt/001.png"
        assert dataset.problems == ()
        assert dataset.has_images
        assert dataset.has_points

    def test_mvtec3d_root_and_split(self, tmp_path):
        root = layouts.write_mvtec3d(tmp_path, categories=("rope", "bagel"))
        (root / "notes").mkdir()
        found = datasets.open_dataset(root)
        assert [dataset.category for dataset in found] == ["bagel", "rope"]
        (rope,) = datasets.open_dataset(root, category="rope", split="train")
        assert names(rope) == ["rope/train/good/000", "rope/train/good/001"]
        assert len(datasets.open_dataset(root, category="all")) == 2
        with pytest.raises(InputError) as error:
            datasets.open_dataset(root, category="cable")
        one_line(error, "category", "cable", "bagel, rope")

    def test_mvtec(self, tmp_path):
        root = layouts.write_mvtec(tmp_path, categories=("bottle", "tile"))
        found = datasets.open_dataset(root)
        assert [(d.layout, d.category, len(d.scans)) for d in found] == [
            ("mvtec", "bottle", 4),
            ("mvtec", "tile", 4),
        ]
        scan = found[0].scans[0]
        assert (scan.name, scan.label) == ("bottle/test/broken/000", 1)
        assert scan.mask == root / "bottle/ground_truth/broken/000_mask.png"
        assert found[0].scans[-1].mask is None
        assert found[0].problems == ()
        assert not found[0].has_points
        assert datasets.open_dataset(root / "tile")[0].scans == found[1].scans

    def test_folder(self, tmp_path):
        root = layouts.write_folder(tmp_path / "line")
        (root / ".hidden.png").write_bytes(b"")
        (root / "notes.txt").write_text("")
        (dataset,) = datasets.open_dataset(root)
        assert names(dataset) == ["line/a", "line/b", "line/line 2/c"]
        assert {scan.label for scan in dataset.scans} == {None}

    def test_folder_leaves_out_results_of_earlier_runs(self, tmp_path):
        root = layouts.write_folder(tmp_path / "line")
        layouts.save_image(root / "out" / "a.png", layouts.rgb_scan())
        (root / "out" / "run.json").write_text("{}")
        assert len(datasets.open_dataset(root)[0].scans) == 3

    def test_forced_layout(self, tmp_path):
        root = layouts.write_mvtec(tmp_path)
        (dataset,) = datasets.open_dataset(root, layout="folder")
        assert dataset.layout == "folder"
        assert len(dataset.scans) == 8
        with pytest.raises(InputError) as error:
            datasets.open_dataset(root, layout="mvtec3d")
        one_line(error, root, "mvtec3d", "rgb,xyz,gt")
        with pytest.raises(InputError) as error:
            datasets.open_dataset(root, layout="imagenet")
        one_line(error, "layout", "imagenet", "mvtec3d, mvtec, folder")

    def test_image_only_and_points_only_categories(self, category):
        for kind in ("xyz", "rgb"):
            other = category.parent / kind
            shutil.copytree(category, other)
            for folder in list(other.rglob(kind)):
                shutil.rmtree(folder)
            (dataset,) = datasets.open_dataset(other)
            assert (dataset.has_images, dataset.has_points) == (kind != "rgb", kind != "xyz")
            assert dataset.problems == ()

    def test_listing_opens_no_file(self, category):
        for path in category.rglob("*.png"):
            path.write_bytes(b"not an image")
        assert len(datasets.open_dataset(category)[0].scans) == 4

    def test_import_is_light(self):
        code = "import sys, muscjax.datasets; print({'jax', 'PIL', 'tifffile', 'scipy'} & set(sys.modules))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "set()"


class TestProblems:
    def test_no_folder(self, tmp_path):
        with pytest.raises(InputError) as error:
            datasets.open_dataset(tmp_path / "nowhere")
        one_line(error, tmp_path / "nowhere", "no such folder")

    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError) as error:
            datasets.open_dataset(tmp_path / "file")
        one_line(error, tmp_path / "file", "expected the folder")

    @pytest.mark.parametrize("layout", ["auto", "mvtec3d", "mvtec", "folder"])
    def test_nothing_in_it(self, tmp_path, layout):
        with pytest.raises(InputError) as error:
            datasets.open_dataset(tmp_path, layout=layout)
        one_line(error, tmp_path, "found no")

    def test_inside_of_a_category_is_not_a_folder_of_images(self, category):
        for inside in (category / "test", category / "test" / "bent", category / "test" / "bent" / "rgb"):
            with pytest.raises(InputError) as error:
                datasets.open_dataset(inside)
            one_line(error, inside, "no known layout")

    @pytest.mark.parametrize("kind", ["rgb", "xyz"])
    def test_pairs(self, category, kind):
        for path in sorted((category / "test" / "bent" / kind).iterdir()):
            path.unlink()
        with pytest.raises(InputError) as error:
            datasets.open_dataset(category)
        one_line(error, f"found no {kind}/000", "first of 2 problems")
        (dataset,) = datasets.open_dataset(category, strict=False)
        assert len(dataset.fatal) == 2
        (dataset,) = datasets.open_dataset(category, modality="points" if kind == "rgb" else "image")
        assert len(dataset.scans) == 4
        (dataset,) = datasets.open_dataset(category, modality="image" if kind == "rgb" else "points")
        assert len(dataset.scans) == 2

    def test_both_asked_of_an_image_category(self, category):
        for folder in list(category.rglob("xyz")):
            shutil.rmtree(folder)
        with pytest.raises(InputError) as error:
            datasets.open_dataset(category, modality="both")
        one_line(error, "found no xyz/000.tiff")

    @pytest.mark.parametrize("modality", ["points", "both"])
    def test_points_asked_of_images(self, tmp_path, modality):
        for root in (layouts.write_mvtec(tmp_path / "a"), layouts.write_folder(tmp_path / "b")):
            with pytest.raises(InputError) as error:
                datasets.open_dataset(root, modality=modality)
            one_line(error, root, modality)

    def test_one_stem_twice(self, category):
        place = category / "test" / "good" / "rgb"
        layouts.save_image(place / "000.jpg", layouts.rgb_scan())
        with pytest.raises(InputError) as error:
            datasets.open_dataset(category)
        one_line(error, place / "000.png", "000.jpg", "one file per stem")

    @pytest.mark.parametrize(("count", "text"), [(0, "no scan"), (1, "1 scan")])
    def test_fewer_than_two(self, tmp_path, count, text):
        root = layouts.write_mvtec3d(tmp_path, counts=(("good", count),), categories=("part", "other"))
        with pytest.raises(InputError) as error:
            datasets.open_dataset(root, category="other")
        one_line(error, root / "other", text, "at least 2")
        with pytest.raises(InputError):
            datasets.open_dataset(layouts.write_folder(tmp_path / "one", names=("a.png",)))

    def test_missing_and_left_over_masks_are_told_but_not_fatal(self, category):
        truth = category / "test" / "bent" / "gt"
        (truth / "001.png").rename(truth / "007.png")
        (dataset,) = datasets.open_dataset(category)
        assert dataset.fatal == ()
        assert len(dataset.problems) == 2
        assert "001.png: found no mask" in dataset.problems[0]
        assert "007.png: found a mask without a scan" in dataset.problems[1]
        assert dataset.scans[1].mask is None

    def test_no_masks_at_all_is_one_line(self, category):
        for folder in list(category.rglob("gt")):
            shutil.rmtree(folder)
        (dataset,) = datasets.open_dataset(category)
        assert len(dataset.problems) == 1
        assert "no masks" in dataset.problems[0]

    def test_all_problems_at_once(self, category):
        (category / "test/bent/xyz/000.tiff").unlink()
        (category / "test/good/rgb/001.png").unlink()
        (category / "test/bent/gt/001.png").unlink()
        layouts.save_image(category / "test/good/gt/000.bmp", layouts.rgb_scan())
        (dataset,) = datasets.open_dataset(category, strict=False)
        assert len(dataset.fatal) == 3
        assert len(dataset.problems) == 4
        assert all("\n" not in problem for problem in dataset.problems)


class TestImages:
    def test_modes(self, tmp_path):
        rgb = layouts.rgb_scan(6, 7)
        grey = rgb[..., 0]
        deep = np.array([[0, 128, 129, 257, 65535]], np.uint16)
        alpha = np.dstack([rgb, np.zeros_like(grey)])
        palette = Image.fromarray(rgb).quantize(8)
        palette.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
        for name, array in {"rgb": rgb, "grey": grey, "deep": deep, "alpha": alpha}.items():
            layouts.save_image(tmp_path / f"{name}.png", array)
        Image.fromarray(grey > 128).save(tmp_path / "bits.png")
        load = datasets.load_image
        np.testing.assert_array_equal(load(tmp_path / "rgb.png"), rgb)
        np.testing.assert_array_equal(load(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
        np.testing.assert_array_equal(load(tmp_path / "alpha.png"), rgb)
        np.testing.assert_array_equal(load(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
        np.testing.assert_array_equal(load(tmp_path / "deep.png")[0, :, 1], [0, 0, 1, 1, 255])
        np.testing.assert_array_equal(load(tmp_path / "bits.png")[..., 2], np.where(grey > 128, 255, 0))
        assert all(load(path).dtype == np.uint8 for path in tmp_path.iterdir())
        assert datasets.image_hw(tmp_path / "rgb.png") == (6, 7)

    def test_float_image(self, tmp_path):
        Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tiff")
        with pytest.raises(InputError) as error:
            datasets.load_image(tmp_path / "a.tiff")
        one_line(error, tmp_path / "a.tiff", "floating-point")

    @given(st.sampled_from([".png", ".jpg", ".bmp", ".tif"]), st.floats(0, 0.95))
    def test_truncated_is_one_line_or_the_whole_image(self, tmp_path_factory, suffix, share):
        path = tmp_path_factory.mktemp("cut") / f"a{suffix}"
        layouts.save_image(path, layouts.rgb_scan(24))
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError) as error:
            datasets.load_image(path)
        one_line(error, path, "not a readable image")

    def test_missing_and_garbage(self, tmp_path):
        with pytest.raises(InputError) as error:
            datasets.load_image(tmp_path / "a.png")
        one_line(error, tmp_path / "a.png", "no such file")
        (tmp_path / "b.png").write_bytes(b"\0" * 100)
        with pytest.raises(InputError) as error:
            datasets.image_hw(tmp_path / "b.png")
        one_line(error, tmp_path / "b.png", "not a readable image")


class TestXyz:
    def save(self, path, array, **options):
        layouts.save_xyz(path, array, **options)
        return path

    @pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
    def test_metres(self, tmp_path, options):
        xyz = layouts.xyz_scan()
        path = self.save(tmp_path / "a.tiff", xyz, **options)
        got = datasets.load_xyz(path)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, xyz)
        assert datasets.xyz_hw(path) == (64, 64)

    def test_units(self, tmp_path):
        xyz = layouts.xyz_scan()
        path = self.save(tmp_path / "a.tiff", xyz * np.float32(1000))
        for units in ("auto", "mm"):
            np.testing.assert_allclose(datasets.load_xyz(path, units=units), xyz, rtol=2e-7)
        np.testing.assert_array_equal(datasets.load_xyz(path, units="m"), xyz * np.float32(1000))
        with pytest.raises(InputError) as error:
            datasets.load_xyz(path, units="inch")  # pyright: ignore[reportArgumentType]
        one_line(error, "units", "inch", "m, mm or auto")

    def test_other_types_and_npy(self, tmp_path):
        xyz = np.round(layouts.xyz_scan() * 1000)
        np.save(tmp_path / "a.npy", xyz.astype(np.int16))
        np.testing.assert_allclose(datasets.load_xyz(tmp_path / "a.npy"), xyz / 1000, rtol=2e-7)
        assert datasets.xyz_hw(tmp_path / "a.npy") == (64, 64)
        np.save(tmp_path / "b.npy", xyz.astype(complex))
        with pytest.raises(InputError) as error:
            datasets.load_xyz(tmp_path / "b.npy")
        one_line(error, tmp_path / "b.npy", "complex128")
        np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
        with pytest.raises(InputError) as error:
            datasets.load_xyz(tmp_path / "c.npy")
        one_line(error, tmp_path / "c.npy")

    @pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (3, 8, 8), (2, 8, 8, 3)])
    def test_shape(self, tmp_path, shape):
        path = tmp_path / "a.tiff"
        tifffile.imwrite(path, np.ones(shape, np.float32), photometric="minisblack")
        for read in (datasets.load_xyz, datasets.xyz_hw):
            with pytest.raises(InputError) as error:
                read(path)
            one_line(error, path, shape, "(height, width, 3)")

    def test_all_zero(self, tmp_path):
        path = self.save(tmp_path / "a.tiff", np.zeros((8, 8, 3), np.float32))
        with pytest.raises(InputError) as error:
            datasets.load_xyz(path)
        one_line(error, path, "all coordinates are zero")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    def test_not_finite(self, tmp_path, value):
        xyz = layouts.xyz_scan().astype(np.float64)
        xyz[3, 4] = value
        xyz[5, 6, 2] = value
        path = self.save(tmp_path / "a.tiff", xyz)
        with pytest.raises(InputError) as error:
            datasets.load_xyz(path)
        one_line(error, path, "NaN or infinite coordinates in 2 pixels", "expected 0 where there is no depth")

    @given(st.sampled_from(["none", "zlib", "npy"]), st.floats(0, 0.98))
    def test_truncated(self, tmp_path_factory, kind, share):
        path = tmp_path_factory.mktemp("cut") / ("a.npy" if kind == "npy" else "a.tiff")
        xyz = layouts.xyz_scan(24, width=24)[:, :, :]
        if kind == "npy":
            np.save(path, xyz)
        else:
            self.save(path, xyz, compression=None if kind == "none" else "zlib")
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError) as error:
            datasets.load_xyz(path)
        one_line(error, path)

    def test_lzw_names_the_package(self, tmp_path):
        path = self.save(tmp_path / "a.tiff", layouts.xyz_scan())
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            tag = file.pages[0].tags["Compression"]  # pyright: ignore[reportAttributeAccessIssue]
            content[tag.valueoffset : tag.valueoffset + 2] = (5).to_bytes(2, "little")
        path.write_bytes(bytes(content))
        with pytest.raises(InputError) as error:
            datasets.load_xyz(path)
        one_line(error, path, "LZW", "imagecodecs")

    def test_missing(self, tmp_path):
        for read in (datasets.load_xyz, datasets.xyz_hw):
            with pytest.raises(InputError) as error:
                read(tmp_path / "a.tiff")
            one_line(error, tmp_path / "a.tiff", "no such file")


def test_damaged_files_are_one_line_and_nothing_on_stderr(tmp_path, capfd):
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("a.png", "a.jpg", "a.bmp", "b.tif", "c.tiff", "c.npy")]
    for path in paths[:4]:
        layouts.save_image(path, layouts.rgb_scan(24))
    layouts.save_xyz(paths[4], layouts.xyz_scan(24, width=24), compression="zlib")
    np.save(paths[5], layouts.xyz_scan(24, width=24))
    messages = []
    for path in paths:
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for at in rng.integers(0, min(len(whole), 300), 3):
                damaged[at] = rng.integers(256)
            path.write_bytes(bytes(damaged))
            reads = [datasets.load_image, datasets.image_hw]
            for read in reads if path in paths[:4] else [datasets.load_xyz, datasets.xyz_hw]:
                try:
                    read(path)
                except InputError as error:
                    messages.append(str(error))
    assert len(messages) > 100
    assert all(str(tmp_path) in message and "\n" not in message for message in messages)
    assert capfd.readouterr() == ("", "")


class TestMask:
    @pytest.mark.parametrize("value", [1, 252, 255])
    def test_any_non_zero_is_defect(self, tmp_path, value):
        path = tmp_path / "a.png"
        layouts.save_image(path, layouts.defect_mask(value=value))
        np.testing.assert_array_equal(datasets.load_mask(path), layouts.defect_mask() > 0)

    def test_modes(self, tmp_path):
        truth = layouts.defect_mask() > 0
        grey = layouts.defect_mask()
        Image.fromarray(truth).save(tmp_path / "bits.png")
        Image.fromarray(np.dstack([grey, grey, grey])).save(tmp_path / "rgb.png")
        Image.fromarray(np.dstack([grey, np.full_like(grey, 255)]), "LA").save(tmp_path / "la.png")
        Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])).save(tmp_path / "rgba.png")
        Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "deep.png")
        labels = Image.fromarray(truth.astype(np.uint8), "P")
        labels.putpalette([9, 9, 9, 0, 0, 0])
        labels.save(tmp_path / "labels.png")
        for path in tmp_path.iterdir():
            np.testing.assert_array_equal(datasets.load_mask(path), truth, err_msg=path.name)

    def test_resized_as_pillow_does(self, tmp_path):
        path = tmp_path / "a.png"
        layouts.save_image(path, layouts.defect_mask(64, 40))
        frame = Frame(source_hw=(64, 40), working_hw=(28, 28), pad=(0, 0, 12, 12))
        padded = np.pad(layouts.defect_mask(64, 40), ((0, 0), (12, 12)))
        grey = np.asarray(Image.fromarray(padded).resize((28, 28), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(datasets.load_mask(path, frame), grey / 255 > 0.5)
        cropped = Frame(source_hw=(64, 40), working_hw=(10, 10), crop=(20, 24, 10, 10))
        assert datasets.load_mask(path, cropped)[4:, 2:].any()

    def test_wrong_size(self, tmp_path):
        path = tmp_path / "a.png"
        layouts.save_image(path, layouts.defect_mask(64))
        with pytest.raises(InputError) as error:
            datasets.load_mask(path, Frame(source_hw=(32, 32), working_hw=(8, 8)))
        one_line(error, path, "64×64", "32×32")


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
        assert not list(tmp_path.rglob("*.mask"))

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
        np.testing.assert_array_equal(
            got.image, datasets.prepare_image(scan, config, modality="both", cache_dir=tmp_path)
        )
        assert got.notes == ()

    def test_not_cleaned(self, category, tmp_path):
        scan = self.scan(category)
        got = prepare(scan, SMALL, modality="both", clean=False, cache_dir=tmp_path)
        raw = prepare(scan, SMALL, modality="image")
        np.testing.assert_array_equal(got.image, raw.image)
        xyz = layouts.xyz_scan(seed=0)[::2, ::2]
        np.testing.assert_array_equal(got.foreground, (xyz != 0).all(-1))
        assert not list(tmp_path.rglob("*.mask"))

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
            got = working._nearest_sample(pixels, samples)
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


class TestLazy:
    def test_indexing(self):
        arrays = np.random.default_rng(0).integers(0, 255, (11, 2, 2, 3), dtype=np.uint8)
        with datasets.Images(lambda i: arrays[i], range(11)) as images:
            assert len(images) == 11
            np.testing.assert_array_equal(images[2:6], arrays[2:6])
            np.testing.assert_array_equal(images[8:20], arrays[8:20])
            np.testing.assert_array_equal(images[-1], arrays[-1])
            np.testing.assert_array_equal(images[np.array([3, 0, 3])], arrays[[3, 0, 3]])
            np.testing.assert_array_equal(images[::-1], arrays[::-1])
            np.testing.assert_array_equal(np.stack(list(images)), arrays)
            for bad in (11, slice(11, 12)):
                with pytest.raises(IndexError):
                    images[bad]

    def test_next_batch_is_loaded_ahead_and_held_once(self):
        loaded = []

        def load(i):
            loaded.append(i)
            return np.full((1, 1, 3), i, np.uint8)

        with datasets.Images(load, range(12), workers=2) as images:
            images[0:4]
            deadline = time.monotonic() + 5
            while len(loaded) < 8 and time.monotonic() < deadline:
                time.sleep(0.001)
            assert sorted(loaded) == list(range(8))
            images[4:8]
            images[8:12]
            assert sorted(loaded) == list(range(12))

    def test_errors_come_where_they_belong(self):
        def load(i):
            if i == 5:
                raise InputError("5: bad")
            return np.zeros((1, 1, 3), np.uint8)

        with datasets.Images(load, range(8)) as images:
            images[0:4]
            with pytest.raises(InputError, match="5: bad"):
                images[4:8]
            assert images[6:8].shape == (2, 1, 1, 3)

    def test_threads_end(self):
        before = set(threading.enumerate())
        images = datasets.Images(lambda i: np.zeros((1, 1, 3), np.uint8), range(8))
        images[0:4]
        ours = set(threading.enumerate()) - before
        assert ours
        images.close()
        for thread in ours:
            thread.join(timeout=5)
        assert not any(thread.is_alive() for thread in ours)

    def test_prefetch_is_ordered_and_bounded(self):
        begun = []

        def load(i):
            begun.append(i)
            return i * i

        results = datasets.prefetch(load, range(20), workers=3, ahead=2)
        assert next(results) == 0
        time.sleep(0.05)
        assert len(begun) <= 4
        assert list(results) == [i * i for i in range(1, 20)]

    def test_prefetch_raises_in_place(self):
        def load(i):
            if i == 2:
                raise InputError("2: bad")
            return i

        results = datasets.prefetch(load, range(9))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(InputError, match="2: bad"):
            next(results)

    def test_lazy_images_are_what_prepare_gives(self, category, tmp_path):
        scans = datasets.open_dataset(category)[0].scans
        for modality in ("image", "both"):
            with datasets.lazy_images(scans, SMALL, modality=modality, cache_dir=tmp_path) as images:
                whole = [prepare(s, SMALL, modality=modality, cache_dir=tmp_path).image for s in scans]
                np.testing.assert_array_equal(images[:], np.stack(whole))


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

    def load(scan):
        return prepare(scan, config, modality="both", cache_dir=tmp_path)

    for scan, got in zip(dataset.scans, datasets.prefetch(load, dataset.scans), strict=True):
        count = np.count_nonzero(got.cloud.valid)
        assert 7100 <= count <= 8540  # REFERENCE.md: 7,100-8,500
        assert got.foreground.sum() == count
        assert 0.6 < np.median(got.cloud.points_m[:count, 2]) < 0.7
        assert got.frame == Frame(source_hw=(400, 400), working_hw=(224, 224))
        assert got.image.shape == (224, 224, 3)
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
