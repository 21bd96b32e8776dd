"""One file to one array: images, XYZ maps, masks; whatever is wrong with a file is one line."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from muscjax import datasets
from muscjax.errors import InputError
from muscjax.types import Frame
from tests import layouts


def one_line(error: pytest.ExceptionInfo[InputError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


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
        kind = "coordinates beyond 1e+09" if np.isfinite(value) else "NaN or infinite coordinates"
        one_line(error, path, f"{kind} in 2 pixels", "expected 0 where there is no depth")

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


def test_lzw_images_and_masks_need_no_package(tmp_path):
    """Pillow reads them; XYZ maps in LZW name the package (``TestXyz.test_lzw_names_the_package``)."""
    rgb, mask = layouts.rgb_scan(24), layouts.defect_mask(48)
    for name, array in (("rgb", rgb), ("mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.tif", compression="tiff_lzw")
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as file:
            assert file.pages[0].compression == 5  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(datasets.load_image(tmp_path / "rgb.tif"), rgb)
    np.testing.assert_array_equal(datasets.load_mask(tmp_path / "mask.tif"), mask > 0)


def test_an_xyz_map_that_is_taken_for_an_image_says_so(tmp_path):
    layouts.save_xyz(tmp_path / "a.tiff", layouts.xyz_scan())
    with pytest.raises(InputError) as error:
        datasets.load_image(tmp_path / "a.tiff")
    one_line(error, tmp_path / "a.tiff", "it is an XYZ map", "folder named xyz")
