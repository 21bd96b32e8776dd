"""Opening data sets: what is listed and chosen, and every kind of bad input in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from muscjax import datasets
from muscjax import names as names_of_layouts
from muscjax.errors import InputError
from tests import layouts


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
        one_line(error, "layout", "imagenet", ", ".join(names_of_layouts.LAYOUTS))

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
