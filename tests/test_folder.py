"""A plain folder: images, clouds, or both; labels and masks where there are any."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from muscjax import datasets
from muscjax.config import Config, InputConfig
from muscjax.errors import InputError
from tests import layouts

SMALL = Config(input=InputConfig(image_size=32))


def one_line(error: pytest.ExceptionInfo[InputError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def opened(root, **options):
    (dataset,) = datasets.open_dataset(root, layout="folder", **options)
    return dataset


def names(dataset):
    return [scan.name for scan in dataset.scans]


class TestPairs:
    @pytest.mark.parametrize("kind", [".tiff", ".npy", "points.npy", ".ply"])
    @pytest.mark.parametrize("separate", [False, True])
    def test_by_stem_in_one_folder_or_in_two(self, tmp_path, kind, separate):
        root = layouts.write_clouds(tmp_path / "line", kind=kind, separate=separate)
        dataset = opened(root)
        assert names(dataset) == ["line/00", "line/01", "line/02"]
        assert dataset.problems == ()
        ending = kind.removeprefix("points")
        for i, scan in enumerate(dataset.scans):
            places = (root / "rgb", root / "xyz") if separate else (root, root)
            assert (scan.image, scan.xyz) == (places[0] / f"{i:02d}.png", places[1] / f"{i:02d}{ending}")
            unorganised = kind in ("points.npy", ".ply")
            assert scan.camera == (root / "camera.json" if unorganised else None)
            assert scan.cleaning == "plane"
            grid = layouts.seen_cloud(seed=i)[1].astype(np.float32)
            np.testing.assert_allclose(datasets.load_scan_xyz(scan), grid, atol=1e-7)

    def test_nested(self, tmp_path):
        root = tmp_path / "line"
        layouts.write_clouds(root / "monday")
        layouts.write_clouds(root / "tuesday", separate=True)
        dataset = opened(root)
        assert names(dataset) == [f"line/{day}/{i:02d}" for day in ("monday", "tuesday") for i in range(3)]
        assert dataset.has_points
        assert dataset.has_images

    def test_an_image_folder_alone_keeps_its_name(self, tmp_path):
        layouts.write_folder(tmp_path / "line", names=("images/a.png", "images/b.png"))
        assert names(datasets.open_dataset(tmp_path / "line")[0]) == ["line/images/a", "line/images/b"]

    def test_two_folders_that_could_be_meant(self, tmp_path):
        root = layouts.write_clouds(tmp_path / "line", separate=True)
        shutil.copytree(root / "rgb", root / "photos")
        with pytest.raises(InputError) as error:
            opened(root)
        one_line(error, root / "rgb", "second folder of images")

    def test_missing_partners_are_told_at_once(self, tmp_path):
        root = layouts.write_clouds(tmp_path / "line", count=5)
        (root / "00.tiff").unlink()
        (root / "03.png").unlink()
        dataset = opened(root, strict=False)
        assert dataset.fatal == (
            f"{root / '00.png'}: found no cloud 00 to pair with",
            f"{root / '03.tiff'}: found no image 03 to pair with",
        )
        assert names(opened(root, modality="image")) == [f"line/{i:02d}" for i in (0, 1, 2, 4)]
        assert names(opened(root, modality="points")) == [f"line/{i:02d}" for i in (1, 2, 3, 4)]

    def test_one_stem_twice(self, tmp_path):
        root = layouts.write_clouds(tmp_path / "line", kind=".npy")
        shutil.copy(root / "01.npy", root / "01.ply")
        with pytest.raises(InputError) as error:
            opened(root)
        one_line(error, root / "01.ply", "01.npy", "one file per stem")


class TestPointsOnly:
    @pytest.mark.parametrize("kind", [".npy", ".ply", "points.npy"])
    def test_clouds_alone(self, tmp_path, kind):
        root = layouts.write_clouds(tmp_path / "line", kind=kind, camera=False)
        for path in root.glob("*.png"):
            path.unlink()
        (dataset,) = datasets.open_dataset(root)
        assert (dataset.layout, dataset.has_images, dataset.has_points) == ("folder", False, True)
        assert dataset.problems == ()
        got = datasets.prepare(dataset.scans[0], SMALL, modality="points", cache_dir=tmp_path / "cache")
        assert got.image is None
        assert np.asarray(got.cloud.valid).sum() > 20
        assert got.frame.working_hw == (32, 32)

    def test_tiffs_are_points_where_points_are_asked_for(self, tmp_path):
        root = layouts.write_clouds(tmp_path / "line")
        for path in root.glob("*.png"):
            path.unlink()
        assert not opened(root).has_points
        dataset = opened(root, modality="points")
        assert dataset.has_points
        assert datasets.load_scan_xyz(dataset.scans[0]).shape == (40, 48, 3)
        with pytest.raises(InputError) as error:
            datasets.load_image(root / "00.tiff")
        one_line(error, root / "00.tiff", "XYZ map", "--modality points")

    def test_a_folder_named_so_holds_points(self, tmp_path):
        root = layouts.write_clouds(tmp_path / "line", separate=True)
        shutil.rmtree(root / "rgb")
        (dataset,) = datasets.open_dataset(root)
        assert names(dataset) == ["line/xyz/00", "line/xyz/01", "line/xyz/02"]
        assert dataset.has_points

    def test_tiffs_are_images_otherwise(self, tmp_path):
        layouts.write_folder(tmp_path / "clouds", names=("a.tiff", "b.png", "c.jpg"))
        (dataset,) = datasets.open_dataset(tmp_path / "clouds")
        assert names(dataset) == ["clouds/a", "clouds/b", "clouds/c"]
        assert not dataset.has_points

    @pytest.mark.parametrize("kind", [".ply", "points.npy"])
    def test_without_a_camera_the_clouds_are_used_alone(self, tmp_path, kind):
        root = layouts.write_clouds(tmp_path / "line", kind=kind, camera=False)
        dataset = opened(root)
        assert (dataset.has_images, dataset.has_points) == (False, True)
        assert {scan.cleaning for scan in dataset.scans} == {"none"}
        (line,) = dataset.problems
        for part in ("camera.json", "as 2 others", "points only", "images are left out"):
            assert part in line
        assert dataset.fatal == ()
        with pytest.raises(InputError) as error:
            opened(root, modality="both")
        one_line(error, "camera.json", "expected a camera file")
        assert opened(root, modality="image").has_images
        assert opened(root, modality="points").has_points

    def test_points_asked_of_images(self, tmp_path):
        root = layouts.write_folder(tmp_path / "line")
        for modality in ("points", "both"):
            with pytest.raises(InputError) as error:
                opened(root, modality=modality)
            one_line(error, root, "images only", modality)


class TestCamera:
    def test_the_nearest_one_counts(self, tmp_path):
        root = tmp_path / "line"
        for day in ("monday", "tuesday"):
            layouts.write_clouds(root / day, kind=".ply", camera=False)
        (root / "camera.yaml").write_text(json.dumps(layouts.CAMERA))
        (root / "tuesday" / "calibration").mkdir()
        (root / "tuesday" / "calibration" / "camera_parameters.json").write_text(json.dumps(layouts.CAMERA))
        cameras = {scan.defect: scan.camera for scan in opened(root).scans}
        assert cameras == {
            "monday": root / "camera.yaml",
            "tuesday": root / "tuesday" / "calibration" / "camera_parameters.json",
        }

    def test_two_beside_each_other(self, tmp_path):
        root = layouts.write_clouds(tmp_path / "line", kind=".ply")
        (root / "camera.yml").write_text("fx: 1")
        dataset = opened(root, strict=False)
        assert len(dataset.fatal) == 1
        assert "second camera" in dataset.fatal[0]

    def test_above_the_data_set_it_is_not_looked_for(self, tmp_path):
        root = layouts.write_clouds(tmp_path / "line", kind=".ply", camera=False)
        (tmp_path / "camera.json").write_text(json.dumps(layouts.CAMERA))
        assert {scan.camera for scan in opened(root).scans} == {None}


class TestTruth:
    def test_labels(self, tmp_path):
        root = layouts.write_folder(
            tmp_path / "line", names=("a.png", "b.jpg", "s 1/c.PNG", "d.bmp", "e.png")
        )
        (root / "labels.csv").write_text(
            "path, label, remark\na.png,0,\nb,Defective,x\ns 1/c.PNG,good\n./d.bmp,1,\ne.png,\n"
        )
        dataset = opened(root)
        assert {scan.stem: scan.label for scan in dataset.scans} == {
            "a": 0,
            "b": 1,
            "c": 0,
            "d": 1,
            "e": None,
        }
        (line,) = dataset.problems
        assert "no label of 1 of 5 scans" in line

    def test_labels_of_pairs_by_either_file(self, tmp_path):
        root = layouts.write_clouds(tmp_path / "line", separate=True)
        (root / "labels.csv").write_text("label,path\n1,rgb/00.png\n0,xyz/01.tiff\nok,02\n")
        dataset = opened(root)
        assert [scan.label for scan in dataset.scans] == [1, 0, 0]
        assert dataset.problems == ()

    def test_faults_of_labels_at_once(self, tmp_path):
        root = layouts.write_folder(tmp_path / "line")
        (root / "labels.csv").write_text("path,label\na.png,perhaps\nz.png,1\nb.jpg,0\nb,0\n")
        dataset = opened(root, strict=False)
        assert [line.removeprefix(f"{root / 'labels.csv'}: ") for line in dataset.problems] == [
            "line 2: label: found 'perhaps', expected 0 or 1",
            "line 5: found 'b' a second time",
            "line 3: found 'z.png', which is no scan here",
            f"found no label of 2 of 3 scans (the first is {root / 'a.png'})",
        ]
        assert len(dataset.fatal) == 2
        (root / "labels.csv").write_text("file,class\n")
        with pytest.raises(InputError) as error:
            opened(root)
        one_line(error, root / "labels.csv", "file,class", "path,label")

    def test_masks_tell_the_defective_ones(self, tmp_path):
        root = layouts.write_folder(tmp_path / "line", names=("a.png", "b.png", "s 1/c.png"))
        layouts.save_image(root / "masks" / "b_mask.png", layouts.defect_mask(41, 50))
        layouts.save_image(root / "masks" / "s 1" / "c.png", layouts.defect_mask(42, 50))
        layouts.save_image(root / "masks" / "x.png", layouts.defect_mask(42, 50))
        (dataset,) = datasets.open_dataset(root)
        assert [(scan.stem, scan.label) for scan in dataset.scans] == [("a", 0), ("b", 1), ("c", 1)]
        assert dataset.scans[1].mask == root / "masks" / "b_mask.png"
        assert dataset.problems == (f"{root / 'masks' / 'x.png'}: found a mask without a scan",)
        assert datasets.prepare(dataset.scans[2], SMALL, modality="image", cache_dir=tmp_path).mask.any()

    def test_masks_of_all_tell_by_their_content(self, tmp_path):
        root = layouts.write_folder(tmp_path / "line", names=("a.png", "b.png"))
        layouts.save_image(root / "masks" / "a.png", layouts.defect_mask(40, 50, value=0))
        layouts.save_image(root / "masks" / "b.png", layouts.defect_mask(41, 50))
        assert [scan.label for scan in opened(root).scans] == [0, 1]
        (root / "masks" / "a.png").write_bytes(b"")
        with pytest.raises(InputError) as error:
            opened(root)
        one_line(error, root / "masks" / "a.png")

    def test_labels_have_the_last_word(self, tmp_path):
        root = layouts.write_folder(tmp_path / "line", names=("a.png", "b.png", "c.png"))
        layouts.save_image(root / "masks" / "a.png", layouts.defect_mask(40, 50))
        (root / "labels.csv").write_text("path,label\na,1\nb,1\nc,0\n")
        dataset = opened(root)
        assert [scan.label for scan in dataset.scans] == [1, 1, 0]
        assert dataset.problems == (f"{root / 'b.png'}: found no mask of this defective scan",)
